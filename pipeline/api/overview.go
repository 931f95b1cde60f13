package api

import (
	"context"
	"maps"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kansa-audit/kansa/pipeline/access"
)

// Known is an organization that has events or settings.
type Known struct {
	Name string `json:"name"`
}

// overview registers what shows an operator around.
func (a *audit) overview() {
	register(a, huma.Operation{
		OperationID: "list-organizations", Method: http.MethodGet, Path: "/api/v1/organizations", Tags: []string{"organizations"},
		Summary: "The organizations that one may see: those with events or settings, or one's own",
	}, func(ctx context.Context, _ *struct{}) (*list[Known], error) {
		w := asking(ctx)
		if w.Organization != "" {
			return &list[Known]{[]Known{{w.Organization}}}, nil
		}
		if err := w.May(access.Auditor, ""); err != nil {
			return nil, err
		}
		seen, err := a.o.Store.Organizations(ctx)
		if err != nil {
			return nil, err
		}
		decided, err := a.ask(w).Organizations(ctx)
		if err != nil {
			return nil, err
		}
		names := map[string]bool{}
		for _, name := range seen {
			names[name] = true
		}
		for i := range decided {
			names[decided[i].Name] = true
		}
		all := []Known{}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			all = append(all, Known{name})
		}
		return &list[Known]{all}, nil
	})
}
