// Package config is the one configuration of Kansa: a YAML file, read strictly, with a default for every
// key.
//
// It owns the keys, their defaults and their checks, and opens nothing but the file itself.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/consumers/exporter/reach"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/schema"
)

// ErrInvalid is what every refused configuration answers to with errors.Is.
var ErrInvalid = errors.New("invalid configuration")

//go:generate go run ./example ../../deploy/config.example.yaml

// Config is the whole file. The comments of its fields, and of the types below, are the manual: deploy/config.example.yaml
// is made of them.
type Config struct {
	// DataDir holds what the embedded parts keep, the key that seals partitions, and the partitions unless
	// partitions.url says otherwise.
	DataDir    string     `yaml:"data_dir"`
	Log        Log        `yaml:"log"`
	NATS       NATS       `yaml:"nats"`
	Streams    Streams    `yaml:"streams"`
	ClickHouse ClickHouse `yaml:"clickhouse"`
	Engine     Engine     `yaml:"engine"`
	Writer     Writer     `yaml:"writer"`
	Trails     Trails     `yaml:"trails"`
	Retention  Retention  `yaml:"retention"`
	Rollup     Rollup     `yaml:"rollup"`
	Partitions Partitions `yaml:"partitions"`
	Encryption Encryption `yaml:"encryption"`
	Settings   Settings   `yaml:"settings"`
	Exports    Exports    `yaml:"exports"`
	// Mail is the server that takes mails with links; without it there are none.
	Mail *mail.Config `yaml:"mail,omitempty"`
	// Destinations are where archives go, by schedule or when someone asks for it (kansa export start --destination).
	Destinations []exporter.Destination `yaml:"destinations,omitempty"`
	API          API                    `yaml:"api"`
	Gateway      Gateway                `yaml:"gateway"`
	Limits       Limits                 `yaml:"limits"`
	Health       Health                 `yaml:"health"`
	Tracing      Tracing                `yaml:"tracing"`
}

// Log says what is written to standard error.
type Log struct {
	Level  slog.Level `yaml:"level"`  // one of debug, info, warn or error
	Format string     `yaml:"format"` // text or json, an object a line
}

// NATS is the broker: embedded, unless URL is set.
type NATS struct {
	// URL of external servers: nats://host:4222, several separated by commas.
	URL string `yaml:"url"`
	// CredentialsFile has a user's JWT and seed (.creds), NKeyFile an NKey's seed, PasswordFile the password of Username,
	// TokenFile a token: one of these ways to log in, or none. The files are read again at each connection.
	CredentialsFile string `yaml:"credentials_file"`
	NKeyFile        string `yaml:"nkey_file"`
	Username        string `yaml:"username"`
	PasswordFile    string `yaml:"password_file"`
	TokenFile       string `yaml:"token_file"`
	// CAFile has the PEM certificates to trust; CertFile and KeyFile are the client's own.
	CAFile   string `yaml:"ca_file"`
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// MonitorURL are the external servers' monitoring addresses, http://host:8222, separated by commas: there they tell
	// whether they sync to disk before they acknowledge. AssumeSyncAlways takes your word for it.
	MonitorURL       string `yaml:"monitor_url"`
	AssumeSyncAlways bool   `yaml:"assume_sync_always"`
	// Listen and Port are where the embedded broker takes connections; port 0 chooses a free one.
	Listen string `yaml:"listen"`
	Port   int    `yaml:"port"`
	// TLSCertFile and TLSKeyFile are the embedded broker's own certificate (PEM), read again at each connection; without, it speaks in
	// plain: then let nobody reach it but over a network that nobody reads.
	TLSCertFile string `yaml:"tls_cert_file"`
	TLSKeyFile  string `yaml:"tls_key_file"`
}

// Streams are the settings of the streams.
type Streams struct {
	// Replicas of every stream: 3 in a cluster of three servers or more.
	Replicas int `yaml:"replicas"`
	// Shards is how many consumers a new stream of events is shared out among, for more writers than one consumer keeps
	// busy; at most 60. Later, kansa shards changes it.
	Shards int `yaml:"shards"`
	// AuditMaxAge and AuditMaxBytes bound the stream of events: how far back a lost ClickHouse can be
	// filled again, and when producers are pushed back. 0 is no bound.
	AuditMaxAge   time.Duration `yaml:"audit_max_age"`
	AuditMaxBytes int64         `yaml:"audit_max_bytes"`
	// DeadLetterMaxAge and DeadLetterMaxBytes bound the dead letters of each organization. The
	// oldest beyond them are dropped, which is counted and logged. 0 is no bound.
	DeadLetterMaxAge   time.Duration `yaml:"dead_letter_max_age"`
	DeadLetterMaxBytes int64         `yaml:"dead_letter_max_bytes"`
	// DuplicateWindow is how long a message that is published again is known by its id.
	DuplicateWindow time.Duration `yaml:"duplicate_window"`
}

// ClickHouse is the engine: embedded, unless URL is set.
type ClickHouse struct {
	// URL is http://host:8123, https://host:8443 or clickhouse://host:9000. Several, separated by commas, are ways to the
	// same data: the first that answers is used.
	URL string `yaml:"url"`
	// Username and the contents of PasswordFile log in. The embedded engine makes its own.
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
	// Database is made if it is not there.
	Database string `yaml:"database"`
	// Cluster is a name of the servers' system.clusters: the tables are made on all of its servers, replicated and distributed. Each server
	// needs the macros shard and replica, and Keeper: deploy/clickhouse.
	Cluster string `yaml:"cluster"`
	// CAFile has the PEM certificates to trust besides the system's.
	CAFile string `yaml:"ca_file"`
	// Listen is the address, host:port, at which analysts query the embedded engine over HTTP. Port 0
	// takes a free one, which kansa analyst show prints. The protocol is not encrypted: beyond loopback,
	// put a proxy with TLS in front.
	Listen string `yaml:"listen"`
	// Analysts are the limits of accounts that kansa analyst add makes.
	Analysts Analysts `yaml:"analysts"`
}

// Analysts bound what analysts use. On a ClickHouse server they hold for accounts that are added
// later. 0 turns a limit off.
type Analysts struct {
	// MaxExecutionTime, MaxMemory, MaxResultRows and MaxRowsToRead end a query with an error.
	MaxExecutionTime time.Duration `yaml:"max_execution_time"`
	MaxMemory        int64         `yaml:"max_memory"`
	MaxResultRows    int64         `yaml:"max_result_rows"`
	MaxRowsToRead    int64         `yaml:"max_rows_to_read"`
	// Queries of one analyst, and OrganizationQueries of all analysts of one organization, run at
	// once. Others wait for up to 10s, then they get 429. The embedded engine runs three at once.
	Queries             int `yaml:"queries"`
	OrganizationQueries int `yaml:"organization_queries"`
	// QueriesPerMinute of one analyst; those beyond get 429.
	QueriesPerMinute int `yaml:"queries_per_minute"`
}

func (c *ClickHouse) check(fault func(format string, v ...any)) {
	host, port, err := net.SplitHostPort(c.Listen)
	if n, portErr := strconv.Atoi(port); err != nil || host == "" || portErr != nil || n < 0 || n > 65535 {
		fault("clickhouse.listen is %q: give host:port, such as 127.0.0.1:8123, with a port up to 65535", c.Listen)
	}
	a := c.Analysts
	if t := a.MaxExecutionTime; t < 0 || t > 0 && t < time.Second {
		fault("clickhouse.analysts.max_execution_time is %s: give 1s at least, or 0 for no limit", t)
	}
	for key, v := range map[string]int64{
		"max_memory": a.MaxMemory, "max_result_rows": a.MaxResultRows, "max_rows_to_read": a.MaxRowsToRead, "queries": int64(a.Queries),
		"organization_queries": int64(a.OrganizationQueries), "queries_per_minute": int64(a.QueriesPerMinute),
	} {
		if v < 0 {
			fault("clickhouse.analysts.%s is %d: give a positive number, or 0 for no limit", key, v)
		}
	}
}

// Engine is the embedded ClickHouse.
type Engine struct {
	// Library is the path of libchdb; looked for beside the program and in /usr/lib/kansa if empty.
	Library string `yaml:"library"`
}

// Writer moves events into ClickHouse.
type Writer struct {
	// MaxRows and MaxBytes bound one insert.
	MaxRows  int `yaml:"max_rows"`
	MaxBytes int `yaml:"max_bytes"`
	// Linger is how long the first event of an insert waits for company when little is going on; MaxLinger, when much is.
	Linger    time.Duration `yaml:"linger"`
	MaxLinger time.Duration `yaml:"max_linger"`
	// Inserts is how many are in flight when they are full; one uses about one core of the engine. The bulk lane has one less, and at
	// least one.
	Inserts int `yaml:"inserts"`
	// Memory bounds the messages held; the process may need two and a half times as much. The bulk lane has half as much besides, while it
	// has messages.
	Memory int64 `yaml:"memory"`
	// AckWait is how long a message is this writer's before another may have it.
	AckWait time.Duration `yaml:"ack_wait"`
	// InsertTimeout bounds one insert: at most half of AckWait, so that a stalled writer can't finish after another took over.
	InsertTimeout time.Duration `yaml:"insert_timeout"`
	// IDWindow is how long an id is known that a producer gave an event: publishing the event again within it, in whatever way, stores
	// it once. 0 stores such events without looking their ids up.
	IDWindow time.Duration `yaml:"id_window"`
}

// Trails are what is recorded of organizations that never switched anything: all of it.
type Trails struct {
	// HIPAA holds the trails on of every organization that did not decide otherwise: they can't be switched off.
	HIPAA bool `yaml:"hipaa"`
}

// Retention says for how many days events are kept, unless an organization decides otherwise.
type Retention struct {
	// Every is how often the rollup looks what is to be removed.
	Every time.Duration `yaml:"every"`
	// Days of all organizations that are not named below.
	Days int `yaml:"days"`
	// Organizations that have other days. An event keeps what held when it was stored.
	Organizations map[string]int `yaml:"organizations,omitempty"`
}

// Expires is when an event of an organization recorded at a time may be removed.
func (r Retention) Expires(organization string, recordedAt time.Time) time.Time {
	days := r.Days
	if own, ok := r.Organizations[organization]; ok {
		days = own
	}
	return schema.Expires(recordedAt, days)
}

// Rollup makes partitions.
type Rollup struct {
	// Hour is the length of a partition; it divides a day.
	Hour time.Duration `yaml:"hour"`
	// Grace is waited for messages that become visible a moment after the time they bear.
	Grace time.Duration `yaml:"grace"`
	// Parallel bounds the partitions made at once; 0 is the number of cores.
	Parallel int `yaml:"parallel"`
	// ComparePercent is the share of the time, in percent, that is spent on comparing the table with the hours that were sealed; 0 compares never.
	ComparePercent int `yaml:"compare_percent"`
}

// Partitions are the stored hours.
type Partitions struct {
	// URL is a bucket: file:///path, or s3://bucket?region=eu-central-1 with the credentials of the AWS SDK's usual places (endpoint=… and
	// use_path_style=true for other servers of S3, which must know If-None-Match). A folder of data_dir if empty.
	URL string `yaml:"url"`
}

// Encryption is that of what lies on disks (Z11). Secrets of destinations are always sealed: see settings. kansa key generate
// makes each of the keys; deploy/RUNBOOK.md says how they are replaced.
type Encryption struct {
	// Streams is the key of what the embedded broker keeps, any text; an external one has its own (jetstream.key).
	Streams Secret `yaml:"streams"`
	// StreamsBefore is the key that Streams takes the place of: the next start encrypts everything anew.
	StreamsBefore Secret `yaml:"streams_before"`
	// ClickHouse has the keys of what the embedded engine keeps, a line each, the newest first. An external one has a disk of the
	// type encrypted. What was stored in plain is encrypted in the background.
	ClickHouse Secret `yaml:"clickhouse"`
	// Partitions has the age identities of the partition store, a line each, the newest first: kansa key generate makes one.
	// What was stored before stays readable; kansa key encrypt encrypts it anew.
	Partitions Secret `yaml:"partitions"`
}

// Secret says where a secret is read from at the start.
type Secret struct {
	File    string   `yaml:"file"`              // that nobody else may read
	Command []string `yaml:"command,omitempty"` // its standard output, in place of the file's: [program, argument, …]
}

// Settings are what people decide while the system runs.
type Settings struct {
	// KeyFile seals the secrets of destinations. A file of data_dir if empty; every process with the role
	// exporter needs the same one.
	KeyFile string `yaml:"key_file"`
}

// Exports are archives and links.
type Exports struct {
	// PublicURL is the address of the API as those who get a link reach it.
	PublicURL string `yaml:"public_url"`
	// LinkDays is how long a link works.
	LinkDays int `yaml:"link_days"`
	// Parallel is how many archives are made at once.
	Parallel int `yaml:"parallel"`
	// AckWait is how long a request waits for an exporter that took it and died, before another has it.
	AckWait time.Duration `yaml:"ack_wait"`
	// PerDay is how many archives of a trail an organization may ask for on one day, unless it decided otherwise.
	PerDay int `yaml:"per_day"`
	// Allow says what destinations may reach that people save through the API, the console or kansa destination. Those below destinations
	// may reach everything.
	Allow Allow `yaml:"allow"`
	// AlertAfter is how long deliveries to a destination fail before those it names are mailed.
	AlertAfter time.Duration `yaml:"alert_after"`
}

// Allow is what destinations may reach. They never name a file of this machine, use its identity in a cloud, or connect to
// a part of Kansa.
type Allow struct {
	// Kinds of destinations: sftp, bucket, mail; all of them if empty.
	Kinds []string `yaml:"kinds,omitempty"`
	// Networks are the only ones that are connected to, such as 198.51.100.0/24. If empty, all are but the addresses of this machine, and
	// link-local and metadata addresses.
	Networks []string `yaml:"networks,omitempty"`
}

// API is the HTTP server. What asks too often is answered with 429 and when to ask again.
type API struct {
	Listen string `yaml:"listen"` // host:port; port 0 chooses a free one
	// TLSCertFile and TLSKeyFile are the server's certificate (PEM), read again when the files change. Beyond this machine the API speaks
	// plain HTTP only behind a proxy that is listed in trusted_proxies.
	TLSCertFile string `yaml:"tls_cert_file"`
	TLSKeyFile  string `yaml:"tls_key_file"`
	// TrustedProxies are addresses and networks of reverse proxies, such as 10.0.0.0/8. Limits and events take the client's address from the
	// X-Forwarded-For, or else the Forwarded, that they send. Such headers from anybody else are ignored.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// WriteTimeout is how long a client may take to read 64 KiB of an answer before it is closed.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// Tails bounds the live tails that are open at once, Logs the readings of the trail as text, Downloads those of archives. Beyond a bound,
	// the API answers 429.
	Tails     Slots `yaml:"tails"`
	Logs      Slots `yaml:"logs"`
	Downloads Slots `yaml:"downloads"`
	// Queries bound the queries of pages, charts and single events that run at once. Others wait. The next turn goes to the organization that
	// runs the fewest.
	Queries Queries `yaml:"queries"`
	// RequestsPerSecond bounds what one key, or one person, asks for; AddressRequestsPerSecond what comes from one address, whoever
	// asks. Ten seconds' worth may come at once. 0 is no bound. Publishing has bounds of its own: see gateway.
	RequestsPerSecond        int `yaml:"requests_per_second"`
	AddressRequestsPerSecond int `yaml:"address_requests_per_second"`
	// SignInsPerMinute bounds a network's failed attempts to sign in, and its requests with a key that is not known; and the failed attempts by
	// one name from all networks together that it never signed in from, of which three times as many may come at once.
	SignInsPerMinute int `yaml:"sign_ins_per_minute"`
	// OIDC lets people sign in by an OpenID provider, beside passwords.
	OIDC OIDC `yaml:"oidc"`
}

// Slots bound how much is open at once: of one key, person or link, of one organization, and in all. 0 turns a bound off.
type Slots struct {
	Each         int `yaml:"each"`         // of one key, person or link
	Organization int `yaml:"organization"` // of one organization
	Total        int `yaml:"total"`        // of all
}

// Queries bound how many run at once: of one organization, and in all. Of each organization, some wait; beyond that, the API answers 429. 0
// turns a bound off.
type Queries struct {
	Organization int `yaml:"organization"` // of one organization
	Total        int `yaml:"total"`        // of all
	Waiting      int `yaml:"waiting"`      // of one organization, for their turn
}

// OIDC is an OpenID provider; there is none without an issuer. It has to know exports.public_url followed by
// /api/v1/session/openid/callback as where it may lead browsers back to.
type OIDC struct {
	Issuer string `yaml:"issuer"` // https://login.example.com/realm
	// ClientID is what the provider calls us by; ClientSecret is read at the start.
	ClientID     string `yaml:"client_id"`
	ClientSecret Secret `yaml:"client_secret"`
	// Scopes are asked for besides openid.
	Scopes []string `yaml:"scopes"`
	// Title is what the button on the sign-in page calls it.
	Title string `yaml:"title"`
	// NameClaim of the id_token is the user's name, GroupsClaim the groups that he is in.
	NameClaim   string `yaml:"name_claim"`
	GroupsClaim string `yaml:"groups_claim"`
	// Roles are what groups give at each sign-in, {group, role, organization}: the first that fits holds, and who is in none is refused. An organization
	// left out is all of them. Without any, users have the roles that they are given here.
	Roles []GroupRole `yaml:"roles,omitempty"`
	// Create makes users at their first sign-in; else an admin makes them, with sign_in openid. It needs roles.
	Create bool `yaml:"create"`
}

// GroupRole is what a group gives.
type GroupRole struct {
	Group        string `yaml:"group"`                  // as the claim has it
	Role         string `yaml:"role"`                   // auditor or admin
	Organization string `yaml:"organization,omitempty"` // that the role is for
}

// Health is what the process says of itself.
type Health struct {
	// Listen is where the process serves /healthz, /readyz and /metrics to everybody who reaches it, for Prometheus and probes; nowhere if
	// empty. At api.listen, metrics and reasons take the key of an operator's auditor or admin; a process that has both at one address
	// serves them so only.
	Listen string `yaml:"listen"`
	// DiskFree is how many bytes should be free on the disk of each directory that is written to.
	DiskFree int64 `yaml:"disk_free"`
}

// Tracing says where spans go, by OTLP over HTTP: from publishing to storing, of each hour, and from a request to its delivery.
type Tracing struct {
	// Endpoint of a collector, http://host:4318. The standard variables (OTEL_EXPORTER_OTLP_ENDPOINT, …) do as well; without either there
	// are no traces.
	Endpoint string `yaml:"endpoint"`
}

// Limits are the shares of what one process takes in, so that no publisher can use up what belongs to others. A publisher that exceeds one
// gets 429 with Retry-After. Four seconds' worth may come at once. 0 turns a limit off.
type Limits struct {
	// KeyBytesPerSecond and KeyEventsPerSecond bound what is published with one API key. Events are counted over HTTP.
	KeyBytesPerSecond  int64 `yaml:"key_bytes_per_second"`
	KeyEventsPerSecond int64 `yaml:"key_events_per_second"`
	// OrganizationBytesPerSecond and OrganizationEventsPerSecond bound what is published for one organization.
	OrganizationBytesPerSecond  int64 `yaml:"organization_bytes_per_second"`
	OrganizationEventsPerSecond int64 `yaml:"organization_events_per_second"`
	// MailsPerDay bounds the mails that go out for one organization on one day, UTC: links and alerts. Further mails wait for the next day.
	MailsPerDay int64 `yaml:"mails_per_day"`
	// NewOrganizationsPerDay bounds the organizations that one key begins to publish for.
	NewOrganizationsPerDay int64 `yaml:"new_organizations_per_day"`
	// PromptBytesPerSecond is what an organization may publish, over HTTP and NATS together, to be stored as soon as possible. Further
	// events are accepted and go into the bulk lane of the stream, so that their backlog delays no other organization. One second's worth may
	// come at once, and a message counts as 8 KiB at least. While the process waits for the processor and several organizations publish,
	// those that exceed it get 429, and may publish 1 MiB a second at least. 0 stores everything in one lane, in order, and turns that off.
	PromptBytesPerSecond int64 `yaml:"prompt_bytes_per_second"`
}

// Gateway is the HTTP entry point for events, at the API's address.
type Gateway struct {
	// Anonymous is who may publish without an API key, over HTTP and NATS: no one if empty, or loopback: every program on this machine, for every
	// organization. Use loopback for trials only. It is refused together with exports.public_url, and with addresses that other machines
	// reach, since a reverse proxy on this machine would publish for anyone.
	Anonymous string `yaml:"anonymous"`
	// Mappings is a directory of mappings (NAME.yaml) that requests and keys can name beside the built-in ones. They are read at
	// the start.
	Mappings string `yaml:"mappings"`
	// MaxBody and MaxEvents bound one request; MaxBody as sent and as decompressed.
	MaxBody   int64 `yaml:"max_body"`
	MaxEvents int   `yaml:"max_events"`
	// Memory bounds what all requests together hold, ClientMemory what those of one client do.
	Memory       int64 `yaml:"memory"`
	ClientMemory int64 `yaml:"client_memory"`
	// MaxRequests bounds the requests that are served at once.
	MaxRequests int `yaml:"max_requests"`
	// Timeout bounds the reading of a body, and then again the wait for the broker.
	Timeout time.Duration `yaml:"timeout"`
	// RetryFor is how long a message is sent again before its events are answered with 503.
	RetryFor time.Duration `yaml:"retry_for"`
}

// Default returns the configuration that holds where the file says nothing.
func Default() *Config {
	return &Config{
		DataDir: "kansa-data",
		Log:     Log{Level: slog.LevelInfo, Format: "text"},
		NATS:    NATS{Listen: "127.0.0.1", Port: 4222},
		Streams: Streams{Replicas: 1, Shards: 1, AuditMaxAge: 7 * 24 * time.Hour, DeadLetterMaxAge: 90 * 24 * time.Hour, DeadLetterMaxBytes: 64 << 20, DuplicateWindow: 10 * time.Minute},
		ClickHouse: ClickHouse{
			Database: "kansa", Listen: "127.0.0.1:0",
			Analysts: Analysts{MaxExecutionTime: time.Minute, MaxMemory: 1 << 30, MaxResultRows: 1_000_000, Queries: 2, OrganizationQueries: 2, QueriesPerMinute: 120},
		},
		Writer: Writer{
			MaxRows: 200_000, MaxBytes: 96 << 20, Linger: 50 * time.Millisecond, MaxLinger: 300 * time.Millisecond, Inserts: 2, Memory: 160 << 20,
			AckWait: time.Minute, InsertTimeout: 20 * time.Second, IDWindow: 24 * time.Hour,
		},
		Retention: Retention{Every: time.Hour, Days: 730},
		Rollup:    Rollup{Hour: time.Hour, Grace: 500 * time.Millisecond, ComparePercent: 5},
		Exports:   Exports{LinkDays: 7, Parallel: 4, AckWait: 30 * time.Second, PerDay: 3, AlertAfter: 15 * time.Minute},
		API: API{
			Listen: "127.0.0.1:8080", TrustedProxies: []string{}, WriteTimeout: 30 * time.Second,
			Tails: Slots{8, 32, 256}, Logs: Slots{2, 2, 4}, Downloads: Slots{4, 16, 64}, Queries: Queries{Organization: 2, Total: 4, Waiting: 64},
			RequestsPerSecond: 100, AddressRequestsPerSecond: 500, SignInsPerMinute: 10, OIDC: OIDC{Scopes: []string{"profile"}, Title: "OpenID", NameClaim: "preferred_username", GroupsClaim: "groups"},
		},
		Gateway: Gateway{
			MaxBody: 32 << 20, MaxEvents: schema.MaxMessageEvents, Memory: 192 << 20, ClientMemory: 128 << 20, MaxRequests: 1024,
			Timeout: 30 * time.Second, RetryFor: 10 * time.Second,
		},
		Limits: Limits{
			KeyBytesPerSecond: 16 << 20, KeyEventsPerSecond: 50_000, OrganizationBytesPerSecond: 32 << 20, OrganizationEventsPerSecond: 100_000,
			PromptBytesPerSecond: 512 << 10, MailsPerDay: 200, NewOrganizationsPerDay: 20,
		},
		Health: Health{DiskFree: 1 << 30},
	}
}

// Load reads the file at path over the defaults and checks all of it. Without a path it returns the
// defaults. The error answers to ErrInvalid if the file was read and refused.
func Load(path string) (*Config, error) {
	c := Default()
	if path == "" {
		return c, c.Check()
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	f, err := read(path, data, c)
	if err == nil {
		if err = c.Check(); err != nil {
			err = f.locate(err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return c, nil
}

// Check reports every fault at once; each names the key, the value and the remedy. It normalizes the
// destinations.
func (c *Config) Check() error {
	var faults []error
	fault := func(format string, v ...any) { faults = append(faults, fmt.Errorf(format, v...)) }
	if c.DataDir == "" {
		fault("data_dir is empty: name a directory")
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		fault("log.format is %q: use text or json", c.Log.Format)
	}
	switch r := c.Streams.Replicas; {
	case r != 1 && r != 3 && r != 5:
		fault("streams.replicas is %d: use 1, 3 or 5", r)
	case r > 1 && c.NATS.URL == "":
		fault("streams.replicas is %d without nats.url: the embedded broker is one server; give the address of the cluster, or use 1", r)
	}
	if p := c.NATS.Port; p < 0 || p > 65535 {
		fault("nats.port is %d: give 1 to 65535, or 0 for a free one", p)
	}
	if l := c.NATS.Listen; c.NATS.URL == "" && (l == "" || l != "localhost" && net.ParseIP(strings.Trim(l, "[]")) == nil) {
		fault("nats.listen is %q: give an address of this machine, such as 127.0.0.1 or 0.0.0.0, without a port", l)
	}
	for key, address := range map[string]string{"api.listen": c.API.Listen, "health.listen": c.Health.Listen} {
		if address == "" && key == "health.listen" {
			continue
		}
		host, port, err := net.SplitHostPort(address)
		n, portErr := strconv.Atoi(port)
		if err != nil || portErr != nil || n < 0 || n > 65535 || host != "" && host != "localhost" && net.ParseIP(host) == nil {
			fault("%s is %q: give an address and a port, such as 127.0.0.1:8080", key, address)
		}
	}
	c.checkPorts(fault)
	if c.Streams.Shards < 1 || c.Streams.Shards > schema.Slots {
		fault("streams.shards is %d: give 1 to %d", c.Streams.Shards, schema.Slots)
	}
	if c.Streams.DuplicateWindow < 2*time.Minute {
		fault("streams.duplicate_window is %s: producers try again for a minute, so give 2m at least", c.Streams.DuplicateWindow)
	}
	if a := c.Streams.AuditMaxAge; a != 0 && a < max(c.Streams.DuplicateWindow, 2*c.Rollup.Hour) {
		fault("streams.audit_max_age is %s: keep events longer than the duplicate window and two hours of the rollup", a)
	}
	if a := c.Streams.DeadLetterMaxAge; a != 0 && a < time.Hour {
		fault("streams.dead_letter_max_age is %s: give 1h at least, or 0 for no bound", a)
	}
	if n := c.Streams.DeadLetterMaxBytes; n != 0 && n < 2*schema.MaxMessageBytes {
		fault("streams.dead_letter_max_bytes is %d: a letter has up to %d bytes, so give %d at least, or 0 for no bound", n, schema.MaxMessageBytes, 2*schema.MaxMessageBytes)
	}
	if c.Writer.InsertTimeout > c.Writer.AckWait/2 {
		fault("writer.insert_timeout is %s: at most half of writer.ack_wait, which is %s", c.Writer.InsertTimeout, c.Writer.AckWait)
	}
	if c.Writer.AckWait < c.Writer.InsertTimeout+3*time.Second {
		fault("writer.ack_wait is %s: give it 3s more than writer.insert_timeout at least, which is %s", c.Writer.AckWait, c.Writer.InsertTimeout)
	}
	if c.Exports.AckWait < 3*time.Second {
		fault("exports.ack_wait is %s: give 3s at least", c.Exports.AckWait)
	}
	for key, v := range map[string]int{
		"writer.max_rows": c.Writer.MaxRows, "writer.max_bytes": c.Writer.MaxBytes, "writer.inserts": c.Writer.Inserts,
		"retention.days": c.Retention.Days, "exports.link_days": c.Exports.LinkDays, "exports.parallel": c.Exports.Parallel, "exports.per_day": c.Exports.PerDay,
		"gateway.max_events": c.Gateway.MaxEvents, "gateway.max_requests": c.Gateway.MaxRequests,
	} {
		if v < 1 {
			fault("%s is %d: give a positive number", key, v)
		}
	}
	for key, v := range map[string]int{
		"api.requests_per_second": c.API.RequestsPerSecond, "api.address_requests_per_second": c.API.AddressRequestsPerSecond,
		"api.sign_ins_per_minute": c.API.SignInsPerMinute,
	} {
		if most := 1_000_000; v < 0 || v > most {
			fault("%s is %d: give 0, which is no bound, to %d", key, v, most)
		}
	}
	if least := int64(4 * schema.MaxMessageBytes); c.Writer.Memory < least {
		fault("writer.memory is %d: give %d at least", c.Writer.Memory, least)
	}
	c.Gateway.check(fault)
	c.checkAnonymous(fault)
	for i, kind := range c.Exports.Allow.Kinds {
		if kind != reach.SFTP && kind != reach.Bucket && kind != reach.Mail {
			fault("exports.allow.kinds[%d] is %q: use sftp, bucket or mail", i, kind)
		}
	}
	for i, network := range c.Exports.Allow.Networks {
		if _, err := netip.ParsePrefix(network); err != nil {
			fault("exports.allow.networks[%d] is %q: give a network such as 198.51.100.0/24", i, network)
		}
	}
	for key, v := range map[string]int64{
		"key_bytes_per_second": c.Limits.KeyBytesPerSecond, "key_events_per_second": c.Limits.KeyEventsPerSecond,
		"organization_bytes_per_second": c.Limits.OrganizationBytesPerSecond, "organization_events_per_second": c.Limits.OrganizationEventsPerSecond,
		"prompt_bytes_per_second":   c.Limits.PromptBytesPerSecond,
		"new_organizations_per_day": c.Limits.NewOrganizationsPerDay, "mails_per_day": c.Limits.MailsPerDay,
	} {
		if most := int64(1) << 28; v < 0 || v > most {
			fault("limits.%s is %d: give 0, which turns the limit off, to %d", key, v, most)
		}
	}
	for key, secret := range map[string]Secret{"streams": c.Encryption.Streams, "streams_before": c.Encryption.StreamsBefore, "clickhouse": c.Encryption.ClickHouse, "partitions": c.Encryption.Partitions} {
		if secret.File != "" && len(secret.Command) > 0 {
			fault("encryption.%s has a file and a command: give one of them", key)
		}
	}
	if !c.Encryption.Streams.Set() && c.Encryption.StreamsBefore.Set() {
		fault("encryption.streams_before is set without encryption.streams: give the new key, too; a broker can not go back to plain files")
	}
	c.NATS.check(fault)
	c.API.check(fault)
	c.ClickHouse.check(fault)
	c.checkOIDC(fault)
	if c.NATS.URL != "" && c.Encryption.Streams.Set() {
		fault("encryption.streams is for the embedded broker: set jetstream.key on the servers of nats.url instead")
	}
	if c.ClickHouse.URL == "" && c.ClickHouse.Cluster != "" {
		fault("clickhouse.cluster is %q without clickhouse.url: the embedded ClickHouse is one server; give the address of the cluster", c.ClickHouse.Cluster)
	}
	if c.ClickHouse.URL != "" && c.Encryption.ClickHouse.Set() {
		fault("encryption.clickhouse is for the embedded ClickHouse: give the server of clickhouse.url an encrypted disk instead")
	}
	if c.Health.DiskFree < 0 {
		fault("health.disk_free is %d: give a number of bytes", c.Health.DiskFree)
	}
	if share := c.Rollup.ComparePercent; share < 0 || share > 100 {
		fault("rollup.compare_percent %d: give 0, never, to 100, all the time", share)
	}
	if h := c.Rollup.Hour; h < time.Second || (24*time.Hour)%h != 0 {
		fault("rollup.hour is %s: it has to be one second at least and divide a day", h)
	}
	absolute := func(key, v string) {
		if u, err := url.Parse(v); v != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			fault("%s is %q: give an absolute address such as https://audit.example.com", key, v)
		}
	}
	absolute("exports.public_url", c.Exports.PublicURL)
	for monitor := range strings.SplitSeq(c.NATS.MonitorURL, ",") {
		absolute("nats.monitor_url", strings.TrimSpace(monitor))
	}
	for org := range c.Retention.Organizations {
		if f := schema.CheckOrganization(org); f != nil {
			fault("retention.organizations: %w", f)
		}
	}
	if c.Mail != nil {
		if err := c.Mail.Validate(); err != nil {
			fault("mail: %w", err)
		}
	}
	if e := c.Tracing.Endpoint; e != "" {
		if u, err := url.Parse(e); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			fault("tracing.endpoint is %q: give http://host:4318, without a path", e)
		}
		c.Tracing.Endpoint = strings.TrimRight(e, "/")
	}
	if c.Retention.Every < time.Second {
		fault("retention.every is %s: give one second at least", c.Retention.Every)
	}
	if c.Exports.AlertAfter < time.Second {
		fault("exports.alert_after is %s: give one second at least", c.Exports.AlertAfter)
	}
	seen := map[string]bool{}
	for i := range c.Destinations {
		d := &c.Destinations[i]
		if err := d.Normalize(); err != nil {
			fault("destinations[%d]: %w", i, err)
		}
		if id := d.Organization + "/" + d.Name; seen[id] {
			fault("destinations[%d]: the name %q is taken: give each destination of an organization its own", i, d.Name)
		}
		seen[d.Organization+"/"+d.Name] = true
		if len(d.Mail) > 0 && (c.Mail == nil || c.Exports.PublicURL == "") {
			fault("destinations[%d]: mail needs mail.host and exports.public_url: set them", i)
		}
		if s := d.Schedule; s != nil && s.Period%c.Rollup.Hour != 0 {
			fault("destinations[%d]: schedule.period %s is no multiple of rollup.hour %s", i, s.Period, c.Rollup.Hour)
		}
	}
	slices.SortFunc(faults, func(a, b error) int {
		switch {
		case a.Error() < b.Error():
			return -1
		default:
			return 1
		}
	})
	return errors.Join(faults...)
}

func (c *Config) checkOIDC(fault func(format string, v ...any)) {
	o := &c.API.OIDC
	if o.Issuer == "" {
		if o.ClientID != "" || o.ClientSecret.Set() || o.Create {
			fault("api.oidc has no issuer: give the address of the OpenID provider")
		}
		return
	}
	u, err := url.Parse(o.Issuer)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && !(u.Scheme == "http" && net.ParseIP(u.Hostname()).IsLoopback()) {
		fault("api.oidc.issuer is %q: give an address such as https://login.example.com/realm", o.Issuer)
	}
	for key, v := range map[string]string{"client_id": o.ClientID, "title": o.Title, "name_claim": o.NameClaim} {
		if v == "" {
			fault("api.oidc.%s is empty: set it", key)
		}
	}
	switch s := o.ClientSecret; {
	case !s.Set():
		fault("api.oidc.client_secret is not set: give a file or a command")
	case s.File != "" && len(s.Command) > 0:
		fault("api.oidc.client_secret has a file and a command: give one of them")
	}
	if o.Create && len(o.Roles) == 0 {
		fault("api.oidc.create is set without roles: say what groups give")
	}
	for i, r := range o.Roles {
		if r.Group == "" {
			fault("api.oidc.roles[%d].group is empty: name a group", i)
		}
		if r.Role != "auditor" && r.Role != "admin" {
			fault("api.oidc.roles[%d].role is %q: use auditor or admin", i, r.Role)
		}
		if r.Organization == "" {
			continue
		}
		if f := schema.CheckOrganization(r.Organization); f != nil {
			fault("api.oidc.roles[%d].organization: %w", i, f)
		}
	}
}

func (a *API) check(fault func(format string, v ...any)) {
	if (a.TLSCertFile == "") != (a.TLSKeyFile == "") {
		fault("api.tls_cert_file and api.tls_key_file belong together: set both")
	}
	if _, err := request.ParseProxies(a.TrustedProxies); err != nil {
		fault("api.trusted_proxies: %w", err)
	}
	if a.TLSCertFile == "" && len(a.TrustedProxies) == 0 && !listensHere(a.Listen) {
		fault("api.listen is %q without TLS: passwords and keys would cross the network in plain text: set api.tls_cert_file and api.tls_key_file, "+
			"or api.trusted_proxies to the addresses of the proxy that speaks TLS, or listen on 127.0.0.1", a.Listen)
	}
	if a.WriteTimeout < time.Second {
		fault("api.write_timeout is %s: give one second at least", a.WriteTimeout)
	}
	for key, slots := range map[string]Slots{"tails": a.Tails, "logs": a.Logs, "downloads": a.Downloads} {
		if slots.Each < 0 || slots.Organization < 0 || slots.Total < 0 {
			fault("api.%s has a negative bound: give a positive number, or 0 to turn it off", key)
		}
	}
	if a.Queries.Organization < 0 || a.Queries.Total < 0 || a.Queries.Waiting < 0 {
		fault("api.queries has a negative bound: give a positive number, or 0 to turn it off")
	}
}

// checkPorts refuses addresses that cannot be listened on together. health.listen and api.listen may be the same.
func (c *Config) checkPorts(fault func(format string, v ...any)) {
	type listener struct{ key, address string }
	all := []listener{{"api.listen", c.API.Listen}}
	if c.NATS.URL == "" {
		all = append(all, listener{"nats.port", net.JoinHostPort(strings.Trim(c.NATS.Listen, "[]"), strconv.Itoa(c.NATS.Port))})
	}
	if c.ClickHouse.URL == "" {
		all = append(all, listener{"clickhouse.listen", c.ClickHouse.Listen})
	}
	if c.Health.Listen != c.API.Listen {
		all = append(all, listener{"health.listen", c.Health.Listen})
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if sameAddress(a.address, b.address) {
				fault("%s is %s, which is also that of %s: give it another port", a.key, a.address, b.key)
			}
		}
	}
}

// sameAddress tells whether two addresses have one port, and a host in common.
func sameAddress(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	plain := func(host string) string {
		ip := net.ParseIP(host)
		switch {
		case host == "" || ip != nil && ip.IsUnspecified():
			return ""
		case host == "localhost":
			return "127.0.0.1"
		case ip != nil:
			return ip.String()
		}
		return host
	}
	hostA, hostB = plain(hostA), plain(hostB)
	return hostA == hostB || hostA == "" || hostB == ""
}

// listensHere says whether only this machine reaches an address.
func listensHere(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	return err != nil || isLoopback(host) // the start says what is wrong with it
}

// checkAnonymous refuses open access where others than the programs on this machine could use it.
func (c *Config) checkAnonymous(fault func(format string, v ...any)) {
	switch c.Gateway.Anonymous {
	case "":
		return
	case "loopback":
	default:
		fault("gateway.anonymous is %q: use loopback, or leave it out", c.Gateway.Anonymous)
		return
	}
	if c.Exports.PublicURL != "" {
		fault("gateway.anonymous is loopback and exports.public_url is %q: a proxy on this machine would let anyone publish; leave gateway.anonymous out and give publishers keys (kansa apikey add)", c.Exports.PublicURL)
	}
	if !isLoopback(c.NATS.Listen) {
		fault("gateway.anonymous is loopback and nats.listen is %q: leave one of them out", c.NATS.Listen)
	}
	if host, _, err := net.SplitHostPort(c.API.Listen); err == nil && !isLoopback(host) {
		fault("gateway.anonymous is loopback and api.listen is %q: leave one of them out", c.API.Listen)
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (n *NATS) check(fault func(format string, v ...any)) {
	if (n.TLSCertFile == "") != (n.TLSKeyFile == "") {
		fault("nats.tls_cert_file and nats.tls_key_file belong together: set both")
	}
	if n.URL != "" && n.TLSCertFile != "" {
		fault("nats.tls_cert_file is for the embedded broker: the servers of nats.url have their own settings, see deploy/nats")
	}
}

func (g *Gateway) check(fault func(format string, v ...any)) {
	if least, most := int64(2*schema.MaxEventBytes), int64(1<<30); g.MaxBody < least || g.MaxBody > most {
		fault("gateway.max_body is %d: give %d to %d", g.MaxBody, least, most)
	}
	if most := 1 << 20; g.MaxEvents > most {
		fault("gateway.max_events is %d: give %d at most", g.MaxEvents, most)
	}
	// A request takes up to four times its body: as sent, as decompressed, and the events read from it.
	if least := 4*g.MaxBody + 8<<20; g.Memory < least {
		fault("gateway.memory is %d: give %d at least, four times gateway.max_body and 8 MiB", g.Memory, least)
	}
	if least := 4 * g.MaxBody; g.ClientMemory < least || g.ClientMemory > g.Memory {
		fault("gateway.client_memory is %d: give %d, four times gateway.max_body, to gateway.memory, which is %d", g.ClientMemory, least, g.Memory)
	}
	if g.RetryFor < time.Second || g.RetryFor > time.Minute {
		fault("gateway.retry_for is %s: give 1s to 1m", g.RetryFor)
	}
	if g.Timeout < g.RetryFor {
		fault("gateway.timeout is %s: at least gateway.retry_for, which is %s, or clients are told nothing of what failed", g.Timeout, g.RetryFor)
	}
}

// Redacted is the configuration without its secrets, to be shown to people.
func (c *Config) Redacted() *Config {
	r := *c
	r.NATS.URL, r.ClickHouse.URL = withoutPasswords(c.NATS.URL), withoutPasswords(c.ClickHouse.URL)
	if c.Mail != nil {
		m := c.Mail.Redacted()
		r.Mail = &m
	}
	r.Destinations = slices.Clone(c.Destinations)
	for i := range r.Destinations {
		if s := r.Destinations[i].SFTP; s != nil {
			hidden := s.Redacted()
			r.Destinations[i].SFTP = &hidden
		}
	}
	return &r
}

var passwordInURL = regexp.MustCompile(`(://[^/@:,]*):[^/,]*@`)

func withoutPasswords(urls string) string { return passwordInURL.ReplaceAllString(urls, "$1:…@") }

// LinkTTL is how long a link works.
func (c *Config) LinkTTL() time.Duration { return time.Duration(c.Exports.LinkDays) * 24 * time.Hour }

// PartitionsURL is the bucket of the partitions.
func (c *Config) PartitionsURL() (string, error) {
	if c.Partitions.URL != "" {
		return c.Partitions.URL, nil
	}
	dir, err := filepath.Abs(filepath.Join(c.DataDir, "partitions"))
	if err != nil {
		return "", fmt.Errorf("find data_dir: %w", err)
	}
	return "file://" + filepath.ToSlash(dir), nil
}
