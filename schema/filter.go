package schema

import "time"

// Filter chooses events. An empty field chooses all; the fields that are given have to hold all together. Texts are
// compared exactly, with upper and lower case (requirement Q7), but for Text.
type Filter struct {
	Trail Trail `json:"trail,omitempty" yaml:"trail,omitempty"`
	// Start and End bound OccurredAt: from the first, up to and without the second.
	Start      time.Time `json:"start,omitzero" yaml:"start,omitempty"`
	End        time.Time `json:"end,omitzero" yaml:"end,omitempty"`
	Source     string    `json:"source,omitempty" yaml:"source,omitempty"`
	Event      string    `json:"event,omitempty" yaml:"event,omitempty"`
	Action     string    `json:"action,omitempty" yaml:"action,omitempty"`
	Outcome    Outcome   `json:"outcome,omitempty" yaml:"outcome,omitempty"`
	ActorID    string    `json:"actor_id,omitempty" yaml:"actor_id,omitempty"`
	TargetType string    `json:"target_type,omitempty" yaml:"target_type,omitempty"`
	TargetID   string    `json:"target_id,omitempty" yaml:"target_id,omitempty"`
	AppID      string    `json:"app_id,omitempty" yaml:"app_id,omitempty"`
	IP         string    `json:"ip,omitempty" yaml:"ip,omitempty"`
	DataType   string    `json:"data_type,omitempty" yaml:"data_type,omitempty"`
	// Text is found in the description, in the names of actor and target, in what was before and after, and in the
	// data; ASCII letters in any case.
	Text string `json:"text,omitempty" yaml:"text,omitempty"`
}

// Term is one text of a filter and the column it is compared with.
type Term struct{ Column, Value string }

// Terms are the texts that have to be equal.
func (f *Filter) Terms() []Term {
	all := []Term{
		{"trail", string(f.Trail)},
		{"source", f.Source},
		{"event", f.Event},
		{"action", f.Action},
		{"outcome", string(f.Outcome)},
		{"actor_id", f.ActorID},
		{"target_type", f.TargetType},
		{"target_id", f.TargetID},
		{"app_id", f.AppID},
		{"ip", f.IP},
		{"data_type", f.DataType},
	}
	var given []Term
	for _, t := range all {
		if t.Value != "" {
			given = append(given, t)
		}
	}
	return given
}

// TextColumns are where Text is looked for.
var TextColumns = []string{"description", "actor_name", "target_name", "before", "after", "data"}

// IsZero tells that f chooses everything.
func (f *Filter) IsZero() bool { return *f == Filter{} }

// Match tells whether f chooses e.
func (f *Filter) Match(e *Event) bool {
	switch {
	case !f.Start.IsZero() && e.OccurredAt.Before(f.Start), !f.End.IsZero() && !e.OccurredAt.Before(f.End),
		f.Trail != "" && e.Trail != f.Trail, f.Source != "" && e.Source != f.Source, f.Event != "" && e.Event != f.Event,
		f.Action != "" && e.Action != f.Action, f.Outcome != "" && e.Outcome != f.Outcome, f.ActorID != "" && e.Actor.ID != f.ActorID,
		f.TargetType != "" && e.Target.Type != f.TargetType, f.TargetID != "" && e.Target.ID != f.TargetID,
		f.AppID != "" && e.AppID != f.AppID, f.IP != "" && e.Context.IP != f.IP, f.DataType != "" && e.DataType != f.DataType:
		return false
	case f.Text == "":
		return true
	}
	for _, text := range []string{e.Description, e.Actor.Name, e.Target.Name, string(e.Before), string(e.After), string(e.Data)} {
		if containsFold(text, f.Text) {
			return true
		}
	}
	return false
}

// containsFold finds part in text, whatever the case of ASCII letters.
func containsFold(text, part string) bool {
	for i := 0; i+len(part) <= len(text); i++ {
		if equalFoldASCII(text[i:i+len(part)], part) {
			return true
		}
	}
	return part == ""
}

func equalFoldASCII(a, b string) bool {
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// Check reports the first fault.
func (f *Filter) Check() error {
	if f.Trail != "" && !f.Trail.Valid() {
		return CheckTrail(f.Trail)
	}
	if !f.Start.IsZero() && !f.End.IsZero() && !f.Start.Before(f.End) {
		return &Fault{Field: "end", Value: f.End.Format(time.RFC3339), Problem: "is not after start", Remedy: "give a later one"}
	}
	switch f.Outcome {
	case "", Success, Failure, Denied, Unknown:
	default:
		return &Fault{Field: "outcome", Value: string(f.Outcome), Problem: "is none", Remedy: "use success, failure, denied or unknown"}
	}
	return nil
}
