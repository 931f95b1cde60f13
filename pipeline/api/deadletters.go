package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/schema"
)

const (
	// lettersLooked bounds the letters that one page looks through for those that are meant.
	lettersLooked = 20_000
	// letterShown is how much of a letter is shown; all of it can be downloaded.
	letterShown = 64 << 10
	// replaysAtOnce bounds one replay of many.
	replaysAtOnce = 1000
)

// Letter is what could not be stored.
type Letter struct {
	deadletter.Letter
	Kind string `json:"kind" doc:"The reason without its values"`
}

// LetterShown is a letter with the beginning of its bytes.
type LetterShown struct {
	Letter
	// Text tells that the bytes are UTF-8.
	Text bool `json:"text"`
	// Cut tells that there are more bytes than data has.
	Cut bool `json:"cut"`
}

// LettersOf says whose letters.
type LettersOf struct {
	Organization string `query:"organization" maxLength:"64" doc:"All if left out, for an admin of all; _invalid has those whose subject names none"`
}

// OneLetter names one.
type OneLetter struct {
	Seq uint64 `path:"seq" minimum:"1"`
}

// Letters is a page of them, the oldest first.
type Letters struct {
	Letters []Letter `json:"letters" nullable:"false"`
	// Next goes on behind the last letter that was looked at, if there may be more.
	Next uint64 `json:"next,omitempty"`
}

// Replayed is what became of a replay.
type Replayed struct {
	deadletter.Outcome
	// Unfit are those that cannot be replayed so; they stay. Problem is why the first of them
	// cannot.
	Unfit   int    `json:"unfit"`
	Problem string `json:"problem,omitempty"`
	// More tells that there are others like them: ask again.
	More bool `json:"more"`
}

// Discarded is how many letters were removed.
type Discarded struct {
	Discarded int `json:"discarded"`
	// More tells that there are others like them: ask again.
	More bool `json:"more"`
}

// ReplayTo is how letters are published again.
type ReplayTo struct {
	ToOrganization string            `json:"to_organization,omitempty" maxLength:"64" doc:"Published for this organization; that of a corrected event or of the subject if left out"`
	ToTrail        string            `json:"to_trail,omitempty" enum:"activity,access" doc:"Published on this trail"`
	Set            map[string]string `json:"set,omitempty" doc:"Fields of each event to set, by their names with dots; an empty value removes the field"`
}

// ManyLetters are those of one reason.
type ManyLetters struct {
	Organization string `json:"organization,omitempty" maxLength:"64"`
	Reason       string `json:"reason" minLength:"1" maxLength:"1000" doc:"Those of this kind, or whose reason has these words"`
}

// DiscardWhy says why letters are removed.
type DiscardWhy struct {
	Why string `json:"why" minLength:"1" maxLength:"1000" doc:"Why it is not wanted; recorded in the activity trail, with the digest of its bytes"`
}

func (r *ReplayTo) change(w *who) deadletter.Change {
	return deadletter.Change{Organization: r.ToOrganization, Trail: schema.Trail(r.ToTrail), Set: r.Set, Only: w.Organization}
}

// outcomeWait is how long a replay waits for the writer, to report what comes back.
const outcomeWait = 10 * time.Second

// adminOf refuses who is no admin of an organization; without one, of all.
func (a *audit) adminOf(ctx context.Context, organization, what string) (*who, error) {
	w := asking(ctx)
	if w.Role != access.Admin || w.Organization != "" && w.Organization != organization {
		a.tell(ctx, w, "access.refused", "read", schema.Denied, organization, what, nil)
		return w, fmt.Errorf("%w: it takes an admin of the organization, or of all", access.ErrForbidden)
	}
	return w, nil
}

// concerned is whose trail tells of a letter.
func concerned(organization string) string {
	if organization == deadletter.Invalid {
		return ""
	}
	return organization
}

// letters registers what shows and replays dead letters, to admins: their own organization's, or all.
func (a *audit) letters() {
	const path = "/api/v1/deadletters"
	tags := []string{"dead letters"}
	admin := func(ctx context.Context, organization string) (string, *who, error) {
		if w := asking(ctx); organization == "" {
			organization = w.Organization
		}
		if organization != "" && organization != deadletter.Invalid {
			if f := schema.CheckOrganization(organization); f != nil {
				return "", nil, huma.Error400BadRequest(f.Error())
			}
		}
		w, err := a.adminOf(ctx, organization, "dead letters")
		return organization, w, err
	}
	type listInput struct {
		LettersOf
		Reason string `query:"reason" maxLength:"1000" doc:"Only those of this kind, or whose reason has these words"`
		From   uint64 `query:"from" doc:"next of the page before"`
		Limit  int    `query:"limit" minimum:"1" maximum:"500" default:"50"`
	}
	register(a, huma.Operation{OperationID: "list-dead-letters", Method: http.MethodGet, Path: path, Summary: "What could not be stored, and why, without its bytes; the oldest first", Tags: tags},
		func(ctx context.Context, in *listInput) (*struct{ Body Letters }, error) {
			organization, w, err := admin(ctx, in.Organization)
			if err != nil {
				return nil, err
			}
			a.tellRead(ctx, w, "deadletters.read", concerned(organization), "list", "reason", in.Reason)
			page := Letters{Letters: []Letter{}}
			looked := 0
			err = deadletter.Heads(ctx, a.o.JS, organization, in.From, func(l deadletter.Letter) bool {
				if looked == lettersLooked || len(page.Letters) == in.Limit {
					page.Next = l.Seq
					return false
				}
				if looked++; l.Like(in.Reason) {
					page.Letters = append(page.Letters, Letter{l, deadletter.Kind(l.Reason)})
				}
				return true
			})
			return &struct{ Body Letters }{page}, err
		})
	register(a, huma.Operation{OperationID: "count-dead-letters", Method: http.MethodGet, Path: path + "/causes", Summary: "How many there are for which reason", Tags: tags},
		func(ctx context.Context, in *LettersOf) (*struct{ Body deadletter.Census }, error) {
			organization, _, err := admin(ctx, in.Organization)
			if err != nil {
				return nil, err
			}
			c, err := deadletter.Causes(ctx, a.o.JS, organization)
			if err != nil {
				return nil, err
			}
			return &struct{ Body deadletter.Census }{*c}, nil
		})
	find := func(ctx context.Context, seq uint64) (*deadletter.Letter, *who, error) {
		w := asking(ctx)
		if w.Role != access.Admin { // before he learns which numbers there are
			_, err := a.adminOf(ctx, w.Organization, "dead letters")
			return nil, w, err
		}
		l, err := deadletter.Get(ctx, a.o.JS, seq)
		if err == nil && w.Organization != "" && l.Organization != w.Organization {
			err = fmt.Errorf("%w: %d", deadletter.ErrNotFound, seq)
		}
		return &l, w, err
	}
	register(a, huma.Operation{OperationID: "get-dead-letter", Method: http.MethodGet, Path: path + "/{seq}", Summary: "One of them, with the first 64 KiB of its bytes", Tags: tags, Errors: []int{404}},
		func(ctx context.Context, in *OneLetter) (*struct{ Body LetterShown }, error) {
			l, w, err := find(ctx, in.Seq)
			if err != nil {
				return nil, err
			}
			a.tellRead(ctx, w, "deadletters.read", concerned(l.Organization), "letter", "seq", strconv.FormatUint(l.Seq, 10))
			shown := LetterShown{Letter: Letter{*l, deadletter.Kind(l.Reason)}, Text: utf8.Valid(l.Data)}
			if shown.Cut = len(l.Data) > letterShown; shown.Cut {
				shown.Data = l.Data[:letterShown]
			}
			return &struct{ Body LetterShown }{shown}, nil
		})
	type file struct {
		ContentType string `header:"Content-Type"`
		Disposition string `header:"Content-Disposition"`
		Options     string `header:"X-Content-Type-Options"`
		Body        []byte
	}
	register(a, huma.Operation{
		OperationID: "get-dead-letter-data", Method: http.MethodGet, Path: path + "/{seq}/data", Summary: "Its bytes, as they came", Tags: tags, Errors: []int{404},
		Responses: map[string]*huma.Response{"200": {Description: "The bytes", Content: map[string]*huma.MediaType{"application/octet-stream": {}}}},
	}, func(ctx context.Context, in *OneLetter) (*file, error) {
		l, w, err := find(ctx, in.Seq)
		if err != nil {
			return nil, err
		}
		seq := strconv.FormatUint(l.Seq, 10)
		a.tellRead(ctx, w, "deadletters.read", concerned(l.Organization), "bytes", "seq", seq)
		return &file{"application/octet-stream", `attachment; filename="deadletter-` + seq + `"`, "nosniff", l.Data}, nil
	})
	// replay publishes letters again, and waits for what comes back.
	replay := func(ctx context.Context, w *who, change deadletter.Change, some []uint64, get func(ctx context.Context, seq uint64) (deadletter.Letter, error)) (*Replayed, error) {
		r := &Replayed{}
		last, err := deadletter.Last(ctx, a.o.JS)
		if err != nil {
			return nil, err
		}
		var replayed []deadletter.Replayed
		for _, seq := range some {
			l, err := get(ctx, seq)
			if len(some) > 1 && errors.Is(err, deadletter.ErrNotFound) {
				continue // somebody else was here
			}
			var one *deadletter.Replayed
			if err == nil {
				one, err = deadletter.Replay(ctx, a.o.JS, l, change, w.String())
			}
			if len(some) > 1 && errors.Is(err, deadletter.ErrUnfit) {
				if r.Unfit++; r.Problem == "" {
					r.Problem = err.Error()
				}
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("after %d were replayed: %w", len(replayed), err)
			}
			a.o.Record(ctx, one.Event(a.event(ctx, w, "deadletter.replayed", "replay", schema.Success, concerned(l.Organization), "", nil)))
			one.Letter.Data = nil
			replayed = append(replayed, *one)
		}
		outcome, err := deadletter.OutcomeOf(ctx, a.o.JS, a.o.Writers, replayed, last, outcomeWait)
		if err != nil {
			return nil, fmt.Errorf("%d were replayed: %w", len(replayed), err)
		}
		r.Outcome = *outcome
		return r, nil
	}
	// chosen are letters of an organization that a person means by a reason.
	chosen := func(ctx context.Context, organization, reason string) (some []uint64, more bool, err error) {
		looked := 0
		// Those that come back while this is under way come behind.
		err = deadletter.Heads(ctx, a.o.JS, organization, 0, func(l deadletter.Letter) bool {
			if len(some) == replaysAtOnce || looked == lettersLooked {
				more = true
				return false
			}
			if looked++; l.Like(reason) {
				some = append(some, l.Seq)
			}
			return true
		})
		return some, more, err
	}
	whole := func(ctx context.Context, seq uint64) (deadletter.Letter, error) {
		return deadletter.Get(ctx, a.o.JS, seq)
	}
	type replayBody struct {
		Data []byte `json:"data,omitempty" doc:"Published in place of its bytes, in base64; as they are if left out"`
		ReplayTo
	}
	type replayInput struct {
		OneLetter
		Body *replayBody
	}
	register(a, huma.Operation{
		OperationID: "replay-dead-letter", Method: http.MethodPost, Path: path + "/{seq}/replay", Summary: "Publish one again, as it is or corrected",
		Description: "It is removed when what was published is on disk. If it still cannot be stored, it comes back as another one, which the answer counts.", Tags: tags, Errors: []int{404, 422}, MaxBodyBytes: 8 << 20,
	}, func(ctx context.Context, in *replayInput) (*struct{ Body Replayed }, error) {
		l, w, err := find(ctx, in.Seq)
		if err != nil {
			return nil, err
		}
		change := deadletter.Change{Only: w.Organization}
		if in.Body != nil {
			change = in.Body.change(w)
			if len(in.Body.Data) > 0 {
				change.Data = in.Body.Data
			}
		}
		if len(change.Data) > schema.MaxMessageBytes {
			return nil, &schema.Fault{Field: "data", Problem: fmt.Sprintf("has %d bytes", len(change.Data)), Remedy: fmt.Sprintf("a message has %d at most", schema.MaxMessageBytes)}
		}
		r, err := replay(ctx, w, change, []uint64{l.Seq}, func(context.Context, uint64) (deadletter.Letter, error) { return *l, nil })
		if err != nil {
			return nil, err
		}
		return &struct{ Body Replayed }{*r}, nil
	})
	type replayMany struct {
		ManyLetters
		ReplayTo
	}
	register(a, huma.Operation{
		OperationID: "replay-dead-letters", Method: http.MethodPost, Path: path + "/replay", Summary: "Publish those of one reason again, 1,000 at most", Tags: tags, Errors: []int{422},
	}, func(ctx context.Context, in *struct{ Body replayMany }) (*struct{ Body Replayed }, error) {
		organization, w, err := admin(ctx, in.Body.Organization)
		if err != nil {
			return nil, err
		}
		some, more, err := chosen(ctx, organization, in.Body.Reason)
		if err != nil {
			return nil, err
		}
		r, err := replay(ctx, w, in.Body.change(w), some, whole)
		if err != nil {
			return nil, err
		}
		r.More = more
		return &struct{ Body Replayed }{*r}, nil
	})
	discard := func(ctx context.Context, w *who, l *deadletter.Letter, why string) error {
		e := a.event(ctx, w, "deadletter.discarded", "delete", schema.Success, concerned(l.Organization), "", nil)
		return deadletter.Discard(ctx, a.o.JS, *l, why, e, a.o.RecordNow)
	}
	type discardInput struct {
		OneLetter
		Body DiscardWhy
	}
	register(a, huma.Operation{
		OperationID: "discard-dead-letter", Method: http.MethodPost, Path: path + "/{seq}/discard", Summary: "Remove one for good, and record who did so and why", Tags: tags, Errors: []int{404, 422},
	}, func(ctx context.Context, in *discardInput) (*struct{ Body Discarded }, error) {
		l, w, err := find(ctx, in.Seq)
		if err == nil {
			err = discard(ctx, w, l, in.Body.Why)
		}
		if err != nil {
			return nil, err
		}
		return &struct{ Body Discarded }{Discarded{Discarded: 1}}, nil
	})
	type discardMany struct {
		ManyLetters
		DiscardWhy
	}
	register(a, huma.Operation{
		OperationID: "discard-dead-letters", Method: http.MethodPost, Path: path + "/discard", Summary: "Remove those of one reason for good, 1,000 at most", Tags: tags, Errors: []int{422},
	}, func(ctx context.Context, in *struct{ Body discardMany }) (*struct{ Body Discarded }, error) {
		organization, w, err := admin(ctx, in.Body.Organization)
		if err != nil {
			return nil, err
		}
		some, more, err := chosen(ctx, organization, in.Body.Reason)
		if err != nil {
			return nil, err
		}
		d := &Discarded{More: more}
		for _, seq := range some {
			l, err := whole(ctx, seq)
			if errors.Is(err, deadletter.ErrNotFound) {
				continue // somebody else was here
			}
			if err == nil {
				err = discard(ctx, w, &l, in.Body.Why)
			}
			if err != nil {
				return nil, fmt.Errorf("after %d were discarded: %w", d.Discarded, err)
			}
			d.Discarded++
		}
		return &struct{ Body Discarded }{*d}, nil
	})
}
