package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrUnsafe is what a server that can't keep Kansa's guarantees answers to with errors.Is.
var ErrUnsafe = errors.New("unsafe NATS server")

// Options say how to reach NATS.
type Options struct {
	URL string // several servers of a cluster are separated by commas
	// Embedded is the server of this process, in place of a URL; it knows us.
	Embedded *Server
	Name     string // of the connection, for the server's lists

	// Who we are: one of a JWT and its seed, an NKey's seed, a user with a password, and a token. Each file is
	// read again whenever a connection is made.
	CredentialsFile string
	NKeyFile        string
	Username        string
	PasswordFile    string
	TokenFile       string

	CAFile   string
	CertFile string // read again, with KeyFile, whenever a connection is made
	KeyFile  string
	// MonitorURL are the servers' monitoring addresses (http://host:8222), separated by commas, where they tell
	// whether they sync before they acknowledge. Clients are not told.
	MonitorURL string
	// AssumeSyncAlways takes the operator's word for it instead.
	AssumeSyncAlways bool
	// Timeout bounds a request of JetStream's that is given no other bound; default 10 s, for a busy disk can take
	// seconds over a sync, and a broker that was started again never answers what the one before was asked. In a cluster
	// that is so of a leader that is gone: give less.
	Timeout time.Duration
	Logger  *slog.Logger
}

// Client is a connection to NATS.
type Client struct {
	NC *nats.Conn
	JS jetstream.JetStream

	mu        sync.Mutex
	consumers map[string]jetstream.ConsumerConfig // as they were set up, by name
	owned     map[string]ownedConsumer            // the same, with what the server made of it
	streams   map[string]jetstream.StreamConfig   // as they were set up, by name
}

// Connect connects, and reconnects for as long as the process lives. It fails if there is no answer
// before ctx ends or 10 seconds have passed.
func Connect(ctx context.Context, o Options) (*Client, error) {
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	options := []nats.Option{
		nats.Name("kansa " + o.Name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(200 * time.Millisecond),
		nats.Timeout(10 * time.Second),
		nats.PingInterval(10 * time.Second), nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("connection to NATS lost", slog.Any("error", err))
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			log.Info("connected to NATS again", slog.String("server", nc.ConnectedUrlRedacted()))
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			log.Warn("NATS reports an error", slog.String("subject", subject), slog.Any("error", err))
		}),
	}
	who, err := login(o, log)
	if err != nil {
		return nil, err
	}
	options = append(options, who...)
	if o.Embedded != nil {
		o.URL = o.Embedded.URL()
		options = append(options, o.Embedded.options()...)
	}
	if o.CAFile != "" || o.CertFile != "" || o.KeyFile != "" {
		tc, err := tlsConfig(o)
		if err != nil {
			return nil, err
		}
		options = append(options, nats.Secure(tc))
	}
	nc, err := nats.Connect(o.URL, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", redact(o.URL), err)
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(cmp.Or(o.Timeout, 10*time.Second)))
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	if err := ctx.Err(); err != nil {
		nc.Close()
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	return &Client{NC: nc, JS: js, consumers: map[string]jetstream.ConsumerConfig{}, owned: map[string]ownedConsumer{}, streams: map[string]jetstream.StreamConfig{}}, nil
}

// Close sends what is buffered and closes the connection.
func (c *Client) Close() {
	_ = c.NC.FlushTimeout(2 * time.Second)
	c.NC.Close()
}

func redact(url string) string {
	if i := strings.LastIndex(url, "@"); i >= 0 {
		if j := strings.Index(url, "://"); j >= 0 {
			return url[:j+3] + "…" + url[i:]
		}
		return "…" + url[i:]
	}
	return url
}

// minVersion is the first server whose message schedules know cron and @every.
const minVersion = "2.14.0"

// CheckServer refuses a server that would break a guarantee, with the reason and the remedy. The error
// answers to [ErrUnsafe].
func (c *Client) CheckServer(ctx context.Context, o Options) error {
	var errs []error
	refuse := func(format string, v ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrUnsafe}, v...)...))
	}
	if v := c.NC.ConnectedServerVersion(); !atLeast(v, minVersion) {
		refuse("version %s has no message schedules: use %s or newer", v, minVersion)
	}
	if n := c.NC.MaxPayload(); n < maxPayload {
		refuse("max_payload is %d bytes, messages of events need %d: set max_payload: %d in the server's configuration", n, maxPayload, maxPayload)
	}
	if _, err := c.JS.AccountInfo(ctx); err != nil {
		refuse("JetStream does not answer (%w): enable it in the server's configuration and for this account", err)
	}
	switch always, err := syncAlways(ctx, o.MonitorURL); {
	case o.AssumeSyncAlways:
	case o.MonitorURL == "":
		refuse("whether it syncs to disk before it acknowledges is not known: set nats.monitor_url to its monitoring address, " +
			"or nats.assume_sync_always: true if every server has jetstream { sync_interval: always }")
	case err != nil:
		refuse("its monitoring address does not tell whether it syncs before it acknowledges: %w", err)
	case !always:
		refuse("it acknowledges before it syncs to disk: set jetstream { sync_interval: always } in its configuration")
	}
	return errors.Join(errs...)
}

// syncAlways asks every server. One that does not answer may be down, which is what a cluster is for: it is left out
// as long as another answers.
func syncAlways(ctx context.Context, monitors string) (bool, error) {
	if monitors == "" {
		return false, nil
	}
	var errs []error
	answered := false
	for monitor := range strings.SplitSeq(monitors, ",") {
		always, err := syncsAlways(ctx, strings.TrimSpace(monitor))
		switch {
		case err != nil:
			errs = append(errs, err)
		case !always:
			return false, nil
		default:
			answered = true
		}
	}
	if answered {
		return true, nil
	}
	return false, errors.Join(errs...)
}

func syncsAlways(ctx context.Context, monitor string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(monitor, "/")+"/jsz?config=true", http.NoBody)
	if err != nil {
		return false, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	var jsz struct {
		Config struct {
			SyncAlways bool `json:"sync_always"`
		} `json:"config"`
	}
	if err := json.NewDecoder(res.Body).Decode(&jsz); err != nil {
		return false, fmt.Errorf("read %s: %w", req.URL.Redacted(), err)
	}
	return jsz.Config.SyncAlways, nil
}

// atLeast compares versions of three numbers; what follows them is ignored.
func atLeast(version, least string) bool {
	var v, l [3]int
	if _, err := fmt.Sscanf(version, "%d.%d.%d", &v[0], &v[1], &v[2]); err != nil {
		return false
	}
	_, _ = fmt.Sscanf(least, "%d.%d.%d", &l[0], &l[1], &l[2])
	for i := range v {
		if v[i] != l[i] {
			return v[i] > l[i]
		}
	}
	return true
}
