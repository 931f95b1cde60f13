package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
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
	Replayed int `json:"replayed"`
	// More tells that there are others like them: ask again.
	More bool `json:"more"`
}

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
	replay := func(ctx context.Context, w *who, l *deadletter.Letter, data []byte) error {
		if err := deadletter.Replay(ctx, a.o.JS, *l, data, w.String()); err != nil {
			return err
		}
		attributes := map[string]string{"seq": strconv.FormatUint(l.Seq, 10), "subject": l.Subject, "reason": l.Reason}
		if data != nil {
			attributes["mended"] = "true"
		}
		a.tell(ctx, w, "deadletter.replayed", "replay", schema.Success, concerned(l.Organization), "", attributes)
		return nil
	}
	type replayBody struct {
		Data []byte `json:"data,omitempty" doc:"Published in place of its bytes, in base64; as they are if left out"`
	}
	type replayInput struct {
		OneLetter
		Body *replayBody
	}
	register(a, huma.Operation{
		OperationID: "replay-dead-letter", Method: http.MethodPost, Path: path + "/{seq}/replay", Summary: "Publish one again, as it is or mended",
		Description: "It is removed when what was published is on disk. If it still can't be stored, it comes back as another one.", Tags: tags, Errors: []int{404, 422}, MaxBodyBytes: 8 << 20,
	}, func(ctx context.Context, in *replayInput) (*struct{ Body Replayed }, error) {
		l, w, err := find(ctx, in.Seq)
		if err != nil {
			return nil, err
		}
		var data []byte
		if in.Body != nil && len(in.Body.Data) > 0 {
			data = in.Body.Data
		}
		if len(data) > schema.MaxMessageBytes {
			return nil, &schema.Fault{Field: "data", Problem: fmt.Sprintf("has %d bytes", len(data)), Remedy: fmt.Sprintf("a message has %d at most", schema.MaxMessageBytes)}
		}
		if err := replay(ctx, w, l, data); err != nil {
			return nil, err
		}
		return &struct{ Body Replayed }{Replayed{Replayed: 1}}, nil
	})
	type manyBody struct {
		Organization string `json:"organization,omitempty" maxLength:"64"`
		Reason       string `json:"reason" minLength:"1" maxLength:"1000" doc:"Those of this kind, or whose reason has these words"`
	}
	register(a, huma.Operation{
		OperationID: "replay-dead-letters", Method: http.MethodPost, Path: path + "/replay", Summary: "Publish those of one reason again, 1,000 at most", Tags: tags, Errors: []int{422},
	}, func(ctx context.Context, in *struct{ Body manyBody }) (*struct{ Body Replayed }, error) {
		organization, w, err := admin(ctx, in.Body.Organization)
		if err != nil {
			return nil, err
		}
		var some []uint64
		r := &Replayed{}
		looked := 0
		// Those that come back while this is under way come behind.
		err = deadletter.Heads(ctx, a.o.JS, organization, 0, func(l deadletter.Letter) bool {
			if len(some) == replaysAtOnce || looked == lettersLooked {
				r.More = true
				return false
			}
			if looked++; l.Like(in.Body.Reason) {
				some = append(some, l.Seq)
			}
			return true
		})
		for _, seq := range some {
			if err != nil {
				break
			}
			var l deadletter.Letter
			if l, err = deadletter.Get(ctx, a.o.JS, seq); errors.Is(err, deadletter.ErrNotFound) {
				err = nil // somebody else was here
				continue
			}
			if err == nil {
				err = replay(ctx, w, &l, nil)
			}
			if err == nil {
				r.Replayed++
			}
		}
		if err != nil {
			return nil, fmt.Errorf("after %d were replayed: %w", r.Replayed, err)
		}
		return &struct{ Body Replayed }{*r}, nil
	})
}
