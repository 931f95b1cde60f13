package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/mail"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter/reach"
	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/schema"
)

// ErrNoDestination means that an organization has no destination of a name.
var ErrNoDestination = errors.New("there is no such destination")

// Settings are where an exporter looks up what people decided, each time it needs it.
type Settings interface {
	// Destination returns one with its secrets, or an error that answers to ErrNoDestination.
	Destination(ctx context.Context, organization, name string) (Destination, error)
	// Rules returns those of an organization; the defaults if it has none of its own.
	Rules(ctx context.Context, organization string) (Rules, error)
}

// Rules are what an organization decided about its exports.
type Rules struct {
	// Off names the trails that are not exported (requirement I1). Scheduled archives of them wait, and are
	// caught up when they are on again.
	Off []schema.Trail
	// PerDay is how many archives of a trail may be asked for on one day, UTC (requirement Z8).
	PerDay int
}

// Destination is where the archives of an organization go. Exactly one of SFTP, Mail and Bucket is set.
type Destination struct {
	// Name is unique within the organization: [A-Za-z0-9_-]{1,64}.
	Name string `yaml:"name" json:"name"`
	// Organization whose events it gets. Required.
	Organization string `yaml:"organization" json:"organization"`
	// Trails it gets; both by default.
	Trails []schema.Trail `yaml:"trails,omitempty" json:"trails,omitempty"`
	// SFTP is the server that gets the archives.
	SFTP *sftp.Config `yaml:"sftp,omitempty" json:"sftp,omitempty"`
	// Mail are the addresses that get a link instead.
	Mail []string `yaml:"mail,omitempty" json:"mail,omitempty"`
	// Bucket is the URL of an object store, as gocloud.dev has them: file:///srv/archives, s3://archives?region=eu-central-1. Another store
	// than S3 itself has an endpoint: s3://archives?region=us-east-1&endpoint=https://minio.example.com&use_path_style=true. With one,
	// checksums that many stores refuse are not sent; request_checksum_calculation=when_supported sends them.
	Bucket string `yaml:"bucket,omitempty" json:"bucket,omitempty"`
	// BucketKeyID and BucketSecret are the access key of an S3 bucket. Without them, a destination of the configuration file uses the server's own
	// identity, as the AWS SDK finds it; any other destination needs them.
	BucketKeyID  string `yaml:"bucket_key_id,omitempty" json:"bucket_key_id,omitempty"`
	BucketSecret string `yaml:"bucket_secret,omitempty" json:"bucket_secret,omitempty"`
	// FromFile says that it is one of the operator's configuration file, and so may name files, identities and addresses of this machine.
	FromFile bool `yaml:"-" json:"-"`
	// Schedule delivers by itself; without it, only when someone asks.
	Schedule *Schedule `yaml:"schedule,omitempty" json:"schedule,omitempty"`
	// Notify are mailed when deliveries have failed for a while, and when they work again.
	Notify []string `yaml:"notify,omitempty" json:"notify,omitempty"`
	// Paused holds back its archives. What is due meanwhile is delivered when it is resumed.
	Paused bool `yaml:"paused,omitempty" json:"paused,omitempty"`
	// Content is what its archives hold, and in which form, unless a request says otherwise.
	render.Content `yaml:",inline"`
}

// Schedule says when a destination gets its archives, and how much one holds.
type Schedule struct {
	// Cron has six fields, seconds first, and TimeZone is an IANA name, UTC by default. A time that does
	// not exist on the day of a clock change comes right after the change. Every is the other way to say
	// when, counted from midnight UTC. Default: daily at 01:15.
	Cron     string        `yaml:"cron,omitempty" json:"cron,omitempty"`
	TimeZone string        `yaml:"time_zone,omitempty" json:"time_zone,omitempty"`
	Every    time.Duration `yaml:"every,omitempty" json:"-"`
	// Period is what one archive holds: a day by default, counted from midnight UTC.
	Period time.Duration `yaml:"period,omitempty" json:"-"`
	// Since is where the first archive begins: by default in the period in which the schedule is
	// first seen. Periods missed in an outage are always caught up.
	Since time.Time `yaml:"since,omitempty" json:"since,omitzero"`
}

// In JSON, as in YAML, durations are written as 24h0m0s.
type scheduleText struct {
	*plainSchedule
	Every  *sftp.Duration `json:"every,omitempty"`
	Period *sftp.Duration `json:"period,omitempty"`
}

type plainSchedule Schedule

// MarshalJSON writes what UnmarshalJSON reads.
func (s Schedule) MarshalJSON() ([]byte, error) {
	t := scheduleText{plainSchedule: (*plainSchedule)(&s)}
	if s.Every != 0 {
		t.Every = (*sftp.Duration)(&s.Every)
	}
	if s.Period != 0 {
		t.Period = (*sftp.Duration)(&s.Period)
	}
	return json.Marshal(t)
}

// UnmarshalJSON refuses fields that there are not.
func (s *Schedule) UnmarshalJSON(data []byte) error {
	t := scheduleText{plainSchedule: (*plainSchedule)(s), Every: (*sftp.Duration)(&s.Every), Period: (*sftp.Duration)(&s.Period)}
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	return d.Decode(&t)
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Normalize fills in the defaults and reports every fault at once; each names the field, the value and the remedy
// (requirement I15).
func (d *Destination) Normalize() error {
	var faults []error
	fault := func(field, value, problem, remedy string) {
		faults = append(faults, &schema.Fault{Field: field, Value: value, Problem: problem, Remedy: remedy})
	}
	if !namePattern.MatchString(d.Name) {
		fault("name", d.Name, "is no name of a destination", "use 1 to 64 of A-Z a-z 0-9 _ -")
	}
	if f := schema.CheckOrganization(d.Organization); f != nil {
		faults = append(faults, f)
	}
	if len(d.Trails) == 0 {
		d.Trails = slices.Clone(schema.Trails)
	}
	for _, t := range d.Trails {
		if f := schema.CheckTrail(t); f != nil {
			faults = append(faults, f)
		}
	}
	kinds := 0
	if d.SFTP != nil {
		kinds++
		if err := d.SFTP.Validate(); err != nil {
			faults = append(faults, fmt.Errorf("sftp: %w", err))
		}
	}
	if len(d.Mail) > 0 {
		kinds++
	}
	if d.Bucket != "" {
		kinds++
		if u, err := url.Parse(d.Bucket); err != nil || u.Scheme == "" || u.User != nil {
			fault("bucket", d.Bucket, "is no address of a bucket", "give one such as file:///srv/archives; credentials do not belong into it")
		}
	}
	if (d.BucketKeyID == "") != (d.BucketSecret == "") {
		fault("bucket_secret", "", "and bucket_key_id belong together", "give both, or none")
	}
	if d.BucketKeyID != "" && !strings.HasPrefix(d.Bucket, "s3://") {
		fault("bucket_key_id", d.BucketKeyID, "is for a bucket of S3", "leave it out, or give a bucket such as s3://archives?region=eu-central-1")
	}
	if kinds != 1 {
		fault("sftp, mail, bucket", "", fmt.Sprintf("are the places an archive can go to, and %d of them are given", kinds),
			"give one; make a destination for each")
	}
	for field, list := range map[string][]string{"mail": d.Mail, "notify": d.Notify} {
		for i, a := range list {
			if _, err := mail.ParseAddress(a); err != nil {
				fault(fmt.Sprintf("%s[%d]", field, i), a, "is no mail address", "write it as name@example.com")
			}
		}
	}
	if d.Schedule != nil {
		d.Schedule.normalize(fault)
	}
	if err := d.Content.Validate(); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

func (s *Schedule) normalize(fault func(field, value, problem, remedy string)) {
	if s.Cron != "" && s.Every != 0 {
		fault("schedule.every", s.Every.String(), "stands beside cron", "give one of the two")
	}
	if s.Cron == "" && s.Every == 0 {
		s.Cron = "0 15 1 * * *"
	}
	if s.Every != 0 && (s.Every < time.Second || s.Every%time.Second != 0) {
		fault("schedule.every", s.Every.String(), "is not a number of whole seconds", "give one second at least")
	}
	if s.Every != 0 && s.TimeZone != "" {
		fault("schedule.time_zone", s.TimeZone, "has no effect on every, which counts from midnight UTC", "remove it, or give cron instead of every")
	}
	if s.Cron != "" {
		if _, err := parseCron(s.Cron); err != nil {
			fault("schedule.cron", s.Cron, "is no time: "+err.Error(), "give six fields, seconds first, such as 0 15 1 * * * for 01:15 each day")
		}
	}
	if _, err := time.LoadLocation(s.TimeZone); err != nil || s.TimeZone == "Local" {
		fault("schedule.time_zone", s.TimeZone, "is no time zone", "use an IANA name such as Asia/Tokyo")
	}
	if s.Period == 0 {
		s.Period = 24 * time.Hour
	}
	if s.Period < time.Second || s.Period%time.Second != 0 {
		fault("schedule.period", s.Period.String(), "is not a number of whole seconds", "give a multiple of an hour of the rollup")
	}
}

// contentOf is what a request to d holds: what it says itself, or else what d says. Who can open the archives of d is
// not forgotten because somebody asks for another format.
func (d *Destination) contentOf(asked render.Content) render.Content {
	if asked.Empty() {
		asked = d.Content
	}
	if len(asked.Recipients) == 0 {
		asked.Recipients = slices.Clone(d.Recipients)
	}
	if len(d.Mail) > 0 {
		asked.ForLink()
	}
	return asked
}

// Kind is that of package reach.
func (d *Destination) Kind() string {
	switch {
	case d.SFTP != nil:
		return reach.SFTP
	case d.Bucket != "":
		return reach.Bucket
	}
	return reach.Mail
}

// s3Bucket is the only address of a bucket that a destination from elsewhere than the configuration file may have: without an
// endpoint, and without any other parameter of the driver.
var s3Bucket = regexp.MustCompile(`^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\?region=[a-z]{2}(-[a-z0-9]{1,20}){1,4}$`)

// CheckTenant refuses what only the operator's configuration file may name: files of this machine, its identity in a cloud, and other
// endpoints than those of S3 itself. It is applied when a destination is saved and again each time before it is used.
func (d *Destination) CheckTenant(allow *reach.Policy) error {
	if d.FromFile {
		return nil
	}
	var faults []error
	fault := func(field, value, problem, remedy string) {
		faults = append(faults, &schema.Fault{Field: field, Value: value, Problem: problem, Remedy: remedy})
	}
	if allow != nil {
		if err := allow.CheckKind(d.Kind()); err != nil {
			faults = append(faults, err)
		}
	}
	if d.SFTP != nil {
		for field, value := range map[string]string{"sftp.password_file": d.SFTP.PasswordFile, "sftp.private_key_file": d.SFTP.PrivateKeyFile} {
			if value != "" {
				fault(field, value, "names a file of the server, which only the operator's configuration file may do", "give the secret itself, in "+strings.TrimSuffix(field, "_file"))
			}
		}
	}
	if d.Bucket != "" {
		switch {
		case !s3Bucket.MatchString(d.Bucket):
			fault("bucket", d.Bucket, "is not a bucket of S3 with a region alone, and only the operator's configuration file may name others", "give one such as s3://archives?region=eu-central-1")
		case d.BucketKeyID == "":
			fault("bucket_key_id", "", "is missing, and only destinations of the operator's configuration file use the server's own identity", "give the access key of the bucket in bucket_key_id and bucket_secret")
		}
	}
	return errors.Join(faults...)
}

// Secrets are the fields that are never shown again, by their names.
func (d *Destination) Secrets() map[string]*string {
	secrets := map[string]*string{"bucket_secret": &d.BucketSecret}
	if d.SFTP != nil {
		secrets["sftp.password"], secrets["sftp.private_key"], secrets["sftp.passphrase"] = &d.SFTP.Password, &d.SFTP.PrivateKey, &d.SFTP.Passphrase
	}
	return secrets
}

// Hidden stands where a secret is that is not shown.
const Hidden = sftp.Hidden

// Redacted is d without its secrets, for people.
func (d *Destination) Redacted() Destination {
	r := *d
	if d.BucketSecret != "" {
		r.BucketSecret = Hidden
	}
	if d.SFTP != nil {
		hidden := d.SFTP.Redacted()
		r.SFTP = &hidden
	}
	return r
}

// Place is where the secrets are used: they are not sent to another because a setting was edited.
func (d *Destination) Place() string {
	if d.SFTP == nil {
		return d.Bucket
	}
	return d.SFTP.User + "@" + d.SFTP.Address()
}
