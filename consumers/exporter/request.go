package exporter

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/mail"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/schema"
)

// Request asks for one archive.
type Request struct {
	// ID makes the request the same one however often it is published: words of A-Z a-z 0-9 _ - with dots between
	// them, 200 bytes at most.
	ID           string         `json:"id"`
	Organization string         `json:"organization"`
	Trails       []schema.Trail `json:"trails"`
	// From and To bound recorded_at: from the first, up to but without the second. Partitions that
	// begin in between are in the archive.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Destination names one of the organization; MailTo is the other choice: who gets a link.
	Destination string   `json:"destination,omitempty"`
	MailTo      []string `json:"mail_to,omitempty"`
	RequestedBy string   `json:"requested_by,omitempty"`
	// Scheduled tells that a schedule asks, and not a person.
	Scheduled bool `json:"scheduled,omitempty"`
	// Content is what of the range is in the archive, and in which form.
	render.Content
}

var idPattern = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

const longestID = 200

// Validate reports the first thing that is wrong with r.
func (r *Request) Validate() error {
	if len(r.ID) > longestID || !idPattern.MatchString(r.ID) {
		return fmt.Errorf("export id %q: use up to %d of A-Z a-z 0-9 _ - and single dots", r.ID, longestID)
	}
	if f := schema.CheckOrganization(r.Organization); f != nil {
		return f
	}
	if len(r.Trails) == 0 {
		return fmt.Errorf("export %s names no trail: use activity, access or both", r.ID)
	}
	for _, t := range r.Trails {
		if f := schema.CheckTrail(t); f != nil {
			return f
		}
	}
	if !r.From.Before(r.To) {
		return fmt.Errorf("export %s: from %s is not before to %s", r.ID, r.From.Format(time.RFC3339), r.To.Format(time.RFC3339))
	}
	if (r.Destination == "") == (len(r.MailTo) == 0) {
		return fmt.Errorf("export %s: name a destination or mail addresses, one of the two", r.ID)
	}
	for _, a := range r.MailTo {
		if _, err := mail.ParseAddress(a); err != nil {
			return fmt.Errorf("export %s: mail address %q: %w", r.ID, a, err)
		}
	}
	return r.Content.Validate()
}

// FileName is the archive's name: it says what is in it, and ends in a hash of the request's id, so that
// it is never used for anything else. What stands behind that says the format, unless it is the partitions' own, and
// that the archive is encrypted.
func (r *Request) FileName() string {
	trails := make([]string, len(r.Trails))
	for i, t := range r.Trails {
		trails[i] = string(t)
	}
	slices.Sort(trails)
	const layout = "20060102T150405Z"
	id := sha256.Sum256([]byte(r.ID))
	return fmt.Sprintf("kansa_%s_%s_%s_%s_%x%s", r.Organization, strings.Join(trails, "+"),
		r.From.UTC().Format(layout), r.To.UTC().Format(layout), id[:4], r.ArchiveSuffix())
}

// task is what a message on EXPORTS holds.
type task struct {
	Request *Request `json:"request"`
	// Once says that this is one more attempt; another message goes on if this one fails.
	Once bool `json:"once,omitempty"`
}

// EncodeRequest is the body of a message that asks for r.
func EncodeRequest(r Request) ([]byte, error) { return json.Marshal(task{Request: &r}) }

// Share is whose share a request counts against: see control.Shared.
func (r Request) Share() string { return r.Organization }
