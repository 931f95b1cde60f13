package deadletter

import (
	"errors"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// Where a letter goes, with which bytes, and whether that counts as the work of the person who
// replays it.
func TestChangeOfLetters(t *testing.T) {
	t.Parallel()
	const event = `{"organization":"acme","trail":"activity","data":{"n":12345678901234567890}}`
	in := func(organization string) string { return "audit.events." + organization + ".activity.7" }
	for name, c := range map[string]struct {
		subject, contentType, data string
		change                     Change
		wantSubject, wantData      string // of the letter if empty
		changed                    bool
		unfit                      string
	}{
		"as it is":                          {subject: in("acme"), data: event},
		"as it is, of another organization": {subject: in("globex"), data: event}, // its publisher may not choose acme by what it writes
		"no organization in the subject":    {subject: "audit.events.acme.Activity", data: event, wantSubject: "audit.events.acme.activity", changed: true},
		"no trail in the subject, and another organization in the event": {subject: "audit.events.globex.Activity", data: event, unfit: `its subject is of organization "globex", and its event of "acme"`},
		"neither there nor in the event":                                 {subject: "audit.events.x", data: `null`, unfit: "name the organization"},
		"neither, but named":                                             {subject: "audit.events.x", data: `null`, change: Change{Organization: "acme", Trail: schema.Access}, wantSubject: "audit.events.acme.access", changed: true},
		"named":                                                          {subject: in("globex"), data: event, change: Change{Organization: "initech"}, wantSubject: "audit.events.initech.activity", wantData: `{"data":{"n":12345678901234567890},"organization":"initech","trail":"activity"}`, changed: true},
		"corrected":                                                      {subject: in("globex"), data: `nonsense`, change: Change{Data: []byte(event)}, wantSubject: "audit.events.acme.activity", wantData: event, changed: true},
		"corrected, by a person of globex":                               {subject: in("globex"), data: `nonsense`, change: Change{Data: []byte(event), Only: "globex"}, unfit: `it would go to organization "acme"`},
		"named, by a person of globex":                                   {subject: in("globex"), data: event, change: Change{Organization: "acme", Only: "globex"}, unfit: `it would go to organization "acme"`},
		"set":                                                            {subject: in("globex"), data: event, change: Change{Set: map[string]string{"action": "read", "data.n": "7", "attributes.a.b": "x", "actor.id": "7"}}, wantData: `{"action":"read","actor":{"id":"7"},"attributes":{"a.b":"x"},"data":{"n":7},"organization":"acme","trail":"activity"}`, changed: true},
		"set to another organization":                                    {subject: in("globex"), data: event, change: Change{Set: map[string]string{"organization": "initech"}}, wantSubject: "audit.events.initech.activity", wantData: `{"data":{"n":12345678901234567890},"organization":"initech","trail":"activity"}`, changed: true},
		"removed":                                                        {subject: in("acme"), data: event, change: Change{Set: map[string]string{"data": "", "actor.name": ""}}, wantData: `{"organization":"acme","trail":"activity"}`, changed: true},
		"set in lines":                                                   {subject: in("acme"), contentType: codec.ContentNDJSON, data: "{}\n{}\n", change: Change{Set: map[string]string{"action": "a"}}, wantData: `{"action":"a"}` + "\n" + `{"action":"a"}`, changed: true},
		"set in an array":                                                {subject: in("acme"), contentType: codec.ContentJSON, data: "[{},{}]", change: Change{Set: map[string]string{"action": "a"}}, wantData: `[{"action":"a"},{"action":"a"}]`, changed: true},
		"set in what is not JSON":                                        {subject: in("acme"), contentType: codec.ContentBlock, data: "\x00", change: Change{Set: map[string]string{"action": "a"}}, unfit: "give the events by --data"},
		"set below what is not an object":                                {subject: in("acme"), data: `{"actor":"x"}`, change: Change{Set: map[string]string{"actor.id": "a"}}, unfit: "field actor is not an object"},
		"events of several organizations":                                {subject: "audit.events.x", data: `[{"organization":"a","trail":"access"},{"organization":"b","trail":"access"}]`, unfit: "several organizations"},
		"JSON in place of a block":                                       {subject: in("acme"), contentType: codec.ContentBlock, data: "\x00", change: Change{Data: []byte(event)}, wantData: event, changed: true},
		"an organization that cannot be a name":                          {subject: in("acme"), data: event, change: Change{Organization: "a.b"}, unfit: "organization"},
	} {
		l := Letter{Seq: 3, Subject: c.subject, ContentType: c.contentType, Data: []byte(c.data)}
		out, err := c.change.apply(&l)
		if c.unfit != "" {
			if !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), c.unfit) {
				t.Errorf("%s: %v, want %q", name, err, c.unfit)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if c.wantSubject == "" {
			c.wantSubject = c.subject
		}
		if c.wantData == "" {
			c.wantData = c.data
		}
		if out.subject != c.wantSubject || string(out.data) != c.wantData || out.changed != c.changed {
			t.Errorf("%s: %s %s, changed %t; want %s %s, %t", name, out.subject, out.data, out.changed, c.wantSubject, c.wantData, c.changed)
		}
		if name == "JSON in place of a block" && out.contentType != codec.ContentJSON {
			t.Errorf("%s: content type %q", name, out.contentType)
		}
	}
}
