package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/integrity"
	"github.com/kansa-audit/kansa/schema"
)

// integrity registers how what was recorded is sealed, and has it verified.
func (a *audit) integrity() {
	const path = "/api/v1/organizations/{organization}/integrity"
	tags := []string{"integrity"}
	register(a, huma.Operation{
		OperationID: "get-integrity", Method: http.MethodGet, Path: path, Tags: tags,
		Summary: "How far each trail is sealed, the heads of the chains, the keys, alarms, and what was verified last",
	}, func(ctx context.Context, in *Of) (*struct{ Body integrity.Overview }, error) {
		_, w, err := a.may(ctx, access.Auditor, in.Organization)
		if err != nil {
			return nil, err
		}
		a.tellRead(ctx, w, "integrity.read", in.Organization, "overview", "", "")
		o, err := a.o.Integrity.Overview(ctx, in.Organization)
		if err != nil {
			return nil, err
		}
		return &struct{ Body integrity.Overview }{*o}, nil
	})
	type hoursInput struct {
		Of
		Trail schema.Trail `query:"trail" enum:"activity,access" required:"true"`
		From  time.Time    `query:"from" required:"true"`
		To    time.Time    `query:"to" required:"true" doc:"Hours that begin before it; 800 at most"`
	}
	register(a, huma.Operation{OperationID: "list-sealed-hours", Method: http.MethodGet, Path: path + "/hours", Summary: "What became of each hour of a trail, as its manifest states it", Tags: tags},
		func(ctx context.Context, in *hoursInput) (*list[integrity.Hour], error) {
			_, w, err := a.may(ctx, access.Auditor, in.Organization)
			if err != nil {
				return nil, err
			}
			a.tellRead(ctx, w, "integrity.read", in.Organization, "hours", "trail", string(in.Trail))
			hours, err := a.o.Integrity.Hours(ctx, in.Organization, in.Trail, in.From, in.To)
			return &list[integrity.Hour]{hours}, err
		})
	type post struct {
		Of
		Body integrity.Request
	}
	register(a, huma.Operation{
		OperationID: "verify", Method: http.MethodPost, Path: path + "/verifications", Summary: "Verify what is stored, as kansa verify does", DefaultStatus: http.StatusAccepted, Tags: tags,
		Description: "One is under way at a time, and covers 366 days at most; how it is doing, the overview says. Who does not trust this server verifies an archive himself.", Errors: []int{409, 422},
	}, func(ctx context.Context, in *post) (*struct{ Body integrity.Verification }, error) {
		_, w, err := a.may(ctx, access.Auditor, in.Organization)
		if err != nil {
			return nil, err
		}
		v, err := a.o.Integrity.Start(ctx, in.Organization, w.String(), in.Body)
		if err != nil {
			return nil, err
		}
		a.tell(ctx, w, "integrity.verified", "verify", schema.Success, in.Organization, "", map[string]string{
			"from": v.From.Format(time.RFC3339), "to": v.To.Format(time.RFC3339), "verification": v.ID,
		})
		return &struct{ Body integrity.Verification }{*v}, nil
	})
}
