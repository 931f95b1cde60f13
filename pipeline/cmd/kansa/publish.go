package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/mapping"
	"github.com/kansa-audit/kansa/schema"
)

// natsFlags say how a tool reaches the broker.
type natsFlags struct {
	NATS         string `name:"nats" default:"nats://127.0.0.1:4222" env:"KANSA_NATS_URL" help:"Address of NATS (${default}); several are separated by commas."`
	Credentials  string `placeholder:"FILE" env:"KANSA_NATS_CREDENTIALS" help:"NATS credentials file: a JWT and its seed."`
	NKey         string `name:"nkey" placeholder:"FILE" env:"KANSA_NATS_NKEY" help:"Seed of an NKey to log in with."`
	User         string `placeholder:"NAME" env:"KANSA_NATS_USER" help:"User to log in as, with --password-file."`
	PasswordFile string `placeholder:"FILE" env:"KANSA_NATS_PASSWORD_FILE" help:"File with the user's password."`
	TokenFile    string `placeholder:"FILE" env:"KANSA_NATS_TOKEN_FILE" help:"File with the API key or token to connect with. On the machine of kansa up, its operator key is found by itself."`
	Data         string `name:"data-dir" placeholder:"DIR" env:"KANSA_DATA_DIR" help:"Directory in which kansa up keeps its data, with the operator key; ./kansa-data and /var/lib/kansa are tried without it."`
	CA           string `name:"tls-ca" aliases:"ca-file" placeholder:"FILE" env:"KANSA_NATS_CA" help:"Certificates of NATS to trust (PEM)."`
	Cert         string `name:"tls-cert" placeholder:"FILE" env:"KANSA_NATS_CERT" help:"Certificate to show to NATS (PEM)."`
	Key          string `name:"tls-key" placeholder:"FILE" env:"KANSA_NATS_KEY" help:"Its key."`
}

// connect connects to the broker, with the operator key of this machine unless a flag names another way to log in.
func (f *natsFlags) connect(ctx context.Context, name string) (*broker.Client, error) {
	if f.Credentials == "" && f.NKey == "" && f.User == "" && f.TokenFile == "" && (f.Data != "" || onThisMachine(f.NATS)) {
		path, err := operatorKey(f.Data)
		if err != nil {
			return nil, err
		}
		f.TokenFile = path
	}
	c, err := broker.Connect(ctx, broker.Options{
		URL: f.NATS, Name: name, CredentialsFile: f.Credentials, NKeyFile: f.NKey, Username: f.User, PasswordFile: f.PasswordFile, TokenFile: f.TokenFile,
		CAFile: f.CA, CertFile: f.Cert, KeyFile: f.Key,
	})
	switch {
	case errors.Is(err, nats.ErrAuthorization) && f.TokenFile == "":
		return nil, fmt.Errorf("%w: the broker requires an API key: name a file with one by --token-file, or the directory of kansa up by --data-dir", err)
	case errors.Is(err, nats.ErrAuthorization):
		return nil, fmt.Errorf("%w: the key in %s is not valid there: name a file with another by --token-file; kansa up replaces its operator key when it starts", err, f.TokenFile)
	case err != nil:
		return nil, fmt.Errorf("%w: check that kansa up is running there, or name another address by --nats", err)
	}
	return c, nil
}

// onThisMachine tells whether all servers of an address are reached by loopback.
func onThisMachine(servers string) bool {
	for server := range strings.SplitSeq(servers, ",") {
		u, err := url.Parse(strings.TrimSpace(server))
		if err != nil {
			return false
		}
		if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && !ip.IsLoopback() || u.User != nil {
			return false
		}
	}
	return true
}

// operatorKey finds the key file that kansa up keeps for the tools on its machine. It is empty if no directory is named and none of the
// usual ones has one.
func operatorKey(dir string) (string, error) {
	dirs := []string{dir}
	if dir == "" {
		dirs = []string{config.Default().DataDir, "/var/lib/kansa", "/var/lib/kansa/" + config.Default().DataDir}
	}
	for _, d := range dirs {
		path := filepath.Join(d, pipeline.OperatorKeyFile)
		f, err := os.Open(path)
		switch {
		case err == nil:
			return path, f.Close()
		case errors.Is(err, fs.ErrPermission):
			return "", fmt.Errorf("read the operator key: %w: run this as the user of kansa up, or name a key of your own by --token-file", err)
		case dir != "":
			return "", fmt.Errorf("read the operator key: %w: name the data_dir of a running kansa up by --data-dir", err)
		}
	}
	return "", nil
}

type publishCmd struct {
	natsFlags
	Files        []string `arg:"" optional:"" name:"file" help:"Files of events (NDJSON, JSON) or, with --mapping, of its format; .gz too; - or none for standard input."`
	Mapping      string   `short:"m" placeholder:"NAME|FILE" help:"Translate foreign records: a built-in mapping (kansa mapping list), or a file of your own."`
	Zone         string   `placeholder:"ZONE" help:"Time zone of records whose times do not say theirs: Asia/Tokyo, +09:00; with --mapping."`
	Organization string   `short:"o" help:"Publish every event for this organization."`
	Trail        string   `short:"t" enum:"activity,access," default:"" help:"Publish every event on this trail: activity or access."`
	FromLine     int      `placeholder:"N" help:"Skip the lines before this one (in a JSON document, the records), as a command that stopped reports it; for one file."`
	Rejects      string   `placeholder:"FILE" help:"Append lines that are refused to this file."`
	JSON         bool     `name:"json" help:"Print the counts as JSON."`
}

func (*publishCmd) Help() string {
	return `Each line is one event; arrays of events and JSON over several lines are read as well. With --mapping, each record becomes an event, or several:
see kansa mapping. An event counts as published when it is on the broker's disk. Records that break a rule are refused with the file, the line and the
reason; the rest is published, and the exit code is 1.

Publishing the same file again within writer.id_window (one day) stores nothing twice, also after an interruption. A file that stops early
(SIGINT, SIGTERM, an error) reports the first line that is not acknowledged. From a pipe, events are sent after a fraction of a second;
on SIGINT or SIGTERM, events that were read are sent before the command ends.

Events that have an id are stored once within writer.id_window, in whatever file or batch they come. In a mapping, an id
that is not a UUID becomes one made of source and id. Lines without an id are told apart by their text and their line number.

  kansa publish events.ndjson
  journal | kansa publish -
  kansa publish --from-line 120001 events.ndjson
  kansa publish --mapping cloudtrail --organization acme 123456789012_CloudTrail_eu-central-1.json.gz
  kansa publish --mapping windows --zone Asia/Tokyo events.json`
}

func (c *publishCmd) Run(e *env) error {
	o := mapping.Options{Organization: c.Organization, Trail: schema.Trail(c.Trail), From: c.FromLine}
	if c.Mapping != "" {
		m, err := loadMapping(c.Mapping, c.Zone)
		if err != nil {
			return err
		}
		o.Mapping = m
	} else if c.Zone != "" {
		return fmt.Errorf("--zone %s is for records of a mapping: name one by --mapping", c.Zone)
	}
	files := c.Files
	if len(files) == 0 {
		files = []string{"-"}
	}
	if c.FromLine != 0 && len(files) > 1 {
		return fmt.Errorf("--from-line counts the lines of one file: name one file, not %d", len(files))
	}
	client, err := c.connect(e.ctx, "publish")
	if err != nil {
		return err
	}
	defer client.Close()
	stderr := &lockedWriter{w: e.stderr} // retries are reported by other goroutines
	f := feed{options: o, stderr: stderr}
	if c.Rejects != "" {
		file, err := os.OpenFile(c.Rejects, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("open --rejects: %w", err)
		}
		defer file.Close()
		f.rejects = file
	}
	bar := newProgress(e.stderr)
	bar.w = stderr
	retries := retryNotice{bar: bar, w: stderr, now: time.Now}
	p, err := producers.New(client.JS, producers.Config{RetryFor: publishRetryFor, Retrying: retries.show})
	if err != nil {
		return err
	}
	f.publisher, f.bar, f.started = p, bar, time.Now()
	for i, name := range files {
		if i > 0 && e.ctx.Err() != nil {
			err = fmt.Errorf("%s: not begun: stopped by a signal: publish it and the files after it", name)
		} else {
			err = f.one(e, name)
		}
		if err != nil {
			break
		}
	}
	bar.clear()
	stop, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), time.Second) // everything has its outcome, or had its time
	defer cancel()
	if closing := p.Close(stop); err == nil {
		err = closing
	}
	acked, unrecorded := p.Stats().Acked, p.Stats().Unrecorded
	if c.JSON {
		fmt.Fprintf(e.stdout, `{"published":%d,"acked":%d,"rejected":%d,"skipped":%d,"not_recorded":%d,"next_line":%d,"next_byte":%d,"seconds":%.3f}`+"\n",
			f.published, acked, f.refused, f.skipped, unrecorded, f.next.line, f.next.offset, time.Since(f.started).Seconds())
	} else {
		fmt.Fprintf(stderr, "%s events published, %s acknowledged, %s refused in %.1f s\n", grouped(f.published), grouped(acked), grouped(f.refused), time.Since(f.started).Seconds())
		if f.skipped > 0 {
			fmt.Fprintf(stderr, "%s records were skipped, as the mapping says\n", grouped(f.skipped))
		}
		if unrecorded > 0 {
			fmt.Fprintf(stderr, "%s events were left out, because their trail is switched off: see kansa trail list\n", grouped(unrecorded))
		}
	}
	if err == nil && f.refused > 0 {
		return errFailed
	}
	return err
}

// lockedWriter is a writer for several goroutines.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// publishRetryFor is how long a message is sent again. It is less than the duplicate window.
const publishRetryFor = time.Minute

// retryNotice writes why messages are sent again: at once, and then every retryNoticeEvery.
type retryNotice struct {
	bar *progress
	w   io.Writer
	now func() time.Time

	mu   sync.Mutex
	last string
	at   time.Time
}

const retryNoticeEvery = 15 * time.Second

func (r *retryNotice) show(reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if text := reason.Error(); text != r.last || now.Sub(r.at) >= retryNoticeEvery {
		r.last, r.at = text, now
		r.bar.clear()
		fmt.Fprintf(r.w, "kansa: %s; trying again for %s\n", text, publishRetryFor)
	}
}
