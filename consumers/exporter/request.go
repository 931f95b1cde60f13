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

	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/schema"
)

// Request asks for one archive.
type Request struct {
	// ID makes the request the same one however often it is published: [A-Za-z0-9_-]{1,128}.
	ID           string         `json:"id"`
	Organization string         `json:"organization"`
	Trails       []schema.Trail `json:"trails"`
	// From and To bound recorded_at: from the first, up to but without the second. Partitions that
	// begin in between are in the archive.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Destination names one of the configuration; MailTo is the other choice: who gets a link.
	Destination string   `json:"destination,omitempty"`
	MailTo      []string `json:"mail_to,omitempty"`
	RequestedBy string   `json:"requested_by,omitempty"`
}

var idPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// Validate reports the first thing that is wrong with r.
func (r *Request) Validate() error {
	if !idPattern.MatchString(r.ID) {
		return fmt.Errorf("export id %q: use 1 to 128 of A-Z a-z 0-9 _ -", r.ID)
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
	return nil
}

// FileName is the archive's name: it says what is in it, and ends in a hash of the request's id, so that
// it is never used for anything else.
func (r *Request) FileName() string {
	trails := make([]string, len(r.Trails))
	for i, t := range r.Trails {
		trails[i] = string(t)
	}
	slices.Sort(trails)
	const layout = "20060102T150405Z"
	id := sha256.Sum256([]byte(r.ID))
	return fmt.Sprintf("kansa_%s_%s_%s_%s_%x.zip", r.Organization, strings.Join(trails, "+"),
		r.From.UTC().Format(layout), r.To.UTC().Format(layout), id[:4])
}

// task is what a message on EXPORTS holds: a request, or the name of a destination whose schedule is due.
type task struct {
	Request  *Request `json:"request,omitempty"`
	Schedule string   `json:"schedule,omitempty"`
}

// EncodeRequest is the body of a message that asks for r.
func EncodeRequest(r Request) ([]byte, error) { return json.Marshal(task{Request: &r}) }

// EncodeSchedule is the body of the message by which the broker says that a destination's schedule is due.
func EncodeSchedule(destination string) ([]byte, error) {
	return json.Marshal(task{Schedule: destination})
}

// Destination is where archives go. Exactly one of SFTP and Mail is set.
type Destination struct {
	// Name is how people and schedules speak of it: letters, digits, _ and -. Required.
	Name string `yaml:"name"`
	// Organization whose events it gets. Required.
	Organization string `yaml:"organization"`
	// Trails it gets; both by default.
	Trails []schema.Trail `yaml:"trails,omitempty"`
	// SFTP is the server that gets the archives.
	SFTP *sftp.Config `yaml:"sftp,omitempty"`
	// Mail are the addresses that get a link instead.
	Mail []string `yaml:"mail,omitempty"`
	// Schedule delivers by itself; without it, only when someone asks.
	Schedule *Schedule `yaml:"schedule,omitempty"`
}

// Schedule says when a destination gets its archives, and how much one holds.
type Schedule struct {
	// Cron has six fields, seconds first, and TimeZone is an IANA name, UTC by default. Every is the
	// other way to say when. Default: daily at 01:15.
	Cron     string        `yaml:"cron,omitempty"`
	TimeZone string        `yaml:"time_zone,omitempty"`
	Every    time.Duration `yaml:"every,omitempty"`
	// Period is what one archive holds: a day by default, counted from midnight UTC.
	Period time.Duration `yaml:"period,omitempty"`
	// Since is where the first archive begins: by default in the period in which the schedule is
	// first seen. Periods missed in an outage are always caught up.
	Since time.Time `yaml:"since,omitempty"`
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Normalize checks d, fills in the defaults, and returns the first fault.
func (d *Destination) Normalize() error {
	if !namePattern.MatchString(d.Name) {
		return fmt.Errorf("destination name %q: use 1 to 64 of A-Z a-z 0-9 _ -", d.Name)
	}
	fail := func(format string, v ...any) error {
		return fmt.Errorf("destination %s: "+format, append([]any{d.Name}, v...)...)
	}
	if f := schema.CheckOrganization(d.Organization); f != nil {
		return fail("%w", f)
	}
	if len(d.Trails) == 0 {
		d.Trails = slices.Clone(schema.Trails)
	}
	for _, t := range d.Trails {
		if f := schema.CheckTrail(t); f != nil {
			return fail("%w", f)
		}
	}
	switch {
	case d.SFTP == nil && len(d.Mail) == 0:
		return fail("it has neither sftp nor mail: give one of them")
	case d.SFTP != nil && len(d.Mail) > 0:
		return fail("it has both sftp and mail: make two destinations of it")
	case d.SFTP != nil:
		if err := d.SFTP.Validate(); err != nil {
			return fail("%w", err)
		}
	}
	for _, a := range d.Mail {
		if _, err := mail.ParseAddress(a); err != nil {
			return fail("mail address %q: %w", a, err)
		}
	}
	if s := d.Schedule; s != nil {
		if s.Cron != "" && s.Every != 0 {
			return fail("schedule has both cron and every: give one of them")
		}
		if s.Cron == "" && s.Every == 0 {
			s.Cron = "0 15 1 * * *"
		}
		if s.Every != 0 && s.Every < time.Second {
			return fail("schedule.every is %s: at least one second", s.Every)
		}
		if n := len(strings.Fields(s.Cron)); s.Cron != "" && n != 6 && !strings.HasPrefix(s.Cron, "@") {
			return fail("schedule.cron %q has %d fields: give six, seconds first, such as 0 15 1 * * *", s.Cron, n)
		}
		if _, err := time.LoadLocation(s.TimeZone); err != nil {
			return fail("schedule.time_zone %q: use an IANA name such as Asia/Tokyo", s.TimeZone)
		}
		if s.Period == 0 {
			s.Period = 24 * time.Hour
		}
		if s.Period < time.Second {
			return fail("schedule.period is %s: at least the length of an hour of the rollup", s.Period)
		}
	}
	return nil
}
