package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/analyst"
)

// analysts registers the accounts for SQL. Those of all organizations are the operator's, who has
// the command line.
func (a *audit) analysts() {
	const path = "/api/v1/organizations/{organization}/analysts"
	tags := []string{"analysts"}
	client := func(w *who) analyst.Client { return a.o.Analysts(w.String()) }
	register(a, huma.Operation{OperationID: "list-analysts", Method: http.MethodGet, Path: path, Summary: "Analysts, who query ClickHouse", Tags: tags},
		func(ctx context.Context, in *Of) (*list[analyst.Analyst], error) {
			_, w, err := a.may(ctx, access.Auditor, in.Organization)
			if err != nil {
				return nil, err
			}
			all, err := client(w).List(ctx, in.Organization)
			if all == nil {
				all = []analyst.Analyst{}
			}
			return &list[analyst.Analyst]{all}, err
		})
	type added struct {
		Of
		Body struct {
			Name string `json:"name" maxLength:"64"`
			Days int    `json:"days,omitempty" minimum:"1" maximum:"3650" default:"365" doc:"How long the account works"`
		}
	}
	register(a, huma.Operation{
		OperationID: "add-analyst", Method: http.MethodPost, Path: path, Summary: "Add an analyst; the password is shown once", Tags: tags, DefaultStatus: http.StatusCreated, Errors: []int{409, 422},
	}, func(ctx context.Context, in *added) (*struct{ Body analyst.Added }, error) {
		_, w, err := a.may(ctx, access.Admin, in.Organization)
		if err != nil {
			return nil, err
		}
		made, err := client(w).Add(ctx, in.Organization, in.Body.Name, in.Body.Days)
		if err != nil {
			return nil, err
		}
		return &struct{ Body analyst.Added }{*made}, nil
	})
	type named struct {
		Of
		Name string `path:"name" maxLength:"64"`
	}
	register(a, huma.Operation{OperationID: "get-analyst", Method: http.MethodGet, Path: path + "/{name}", Summary: "How an analyst connects", Tags: tags, Errors: []int{404, 422}},
		func(ctx context.Context, in *named) (*struct{ Body analyst.Connection }, error) {
			_, w, err := a.may(ctx, access.Auditor, in.Organization)
			if err != nil {
				return nil, err
			}
			c, err := client(w).Show(ctx, in.Organization, in.Name)
			if err != nil {
				return nil, err
			}
			return &struct{ Body analyst.Connection }{*c}, nil
		})
	register(a, huma.Operation{OperationID: "remove-analyst", Method: http.MethodDelete, Path: path + "/{name}", Summary: "Remove an analyst and end the queries", Tags: tags, Errors: []int{404, 422}},
		func(ctx context.Context, in *named) (*struct{}, error) {
			_, w, err := a.may(ctx, access.Admin, in.Organization)
			if err != nil {
				return nil, err
			}
			return nil, client(w).Remove(ctx, in.Organization, in.Name)
		})
}
