package owntrail

import (
	"testing"

	"github.com/kansa-audit/kansa/schema"
)

// What concerns an organization stands in its trails; everything else in the operator's, which then says whom it concerns.
func TestPlace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		organization string
		trail        schema.Trail
		want, says   string
	}{
		{"acme", schema.Access, "acme", ""},
		{"globex", schema.Activity, "globex", ""},
		{"", schema.Access, Organization, ""},
		{"no name", "", Organization, "no name"},
		{Organization, "", Organization, ""},
	} {
		given := map[string]string{"a": "b"}
		e := schema.Event{Organization: c.organization, Trail: c.trail, Attributes: given}
		place(&e)
		if e.Organization != c.want || e.Attributes["organization"] != c.says || e.Trail == "" || e.Attributes["a"] != "b" || len(given) != 1 {
			t.Errorf("%+v: %s, %v", c, e.Organization, e.Attributes)
		}
	}
}
