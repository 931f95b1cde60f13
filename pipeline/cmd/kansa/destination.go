package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/operator"
)

type destinationCmd struct {
	Add    destinationAddCmd    `cmd:"" help:"Make a destination, after a test of it."`
	Edit   destinationEditCmd   `cmd:"" help:"Change fields of one, after a test of it."`
	Show   destinationShowCmd   `cmd:"" help:"Print one as YAML, without its secrets."`
	Test   destinationTestCmd   `cmd:"" help:"Try one, step by step: connection, host key, algorithms, sign-in, path, space, write, rename."`
	List   destinationListCmd   `cmd:"" help:"List them, with how deliveries are doing and when the next is due."`
	Pause  destinationPauseCmd  `cmd:"" help:"Hold back its archives; they are delivered when it is resumed."`
	Resume destinationResumeCmd `cmd:"" help:"Deliver what was held back, in order, and go on."`
	Remove destinationRemoveCmd `cmd:"" help:"Forget one, with its secrets."`
}

// operatorOf asks in the name of who is signed in to this machine.
func operatorOf(c *broker.Client) operator.Client {
	by := "cli"
	if u, err := user.Current(); err == nil && u.Username != "" {
		by = "cli:" + u.Username
	}
	return operator.Client{NC: c.NC, By: by}
}

// destinationName names one as organization/name.
type destinationName struct {
	Name string `arg:"" name:"organization/name" help:"Which: acme/archive."`
}

func (n *destinationName) split() (organization, name string, err error) {
	organization, name, ok := strings.Cut(n.Name, "/")
	if !ok {
		return "", "", fmt.Errorf("%q names no destination: write organization/name, as kansa destination list shows it", n.Name)
	}
	return organization, name, nil
}

// fieldFlags change a destination.
type fieldFlags struct {
	File  string   `short:"f" placeholder:"FILE" help:"YAML with its fields; - is standard input."`
	Set   []string `short:"s" placeholder:"FIELD=VALUE" sep:"none" help:"Set a field to a YAML value; FIELD=@FILE takes a file's text, for secrets. May be given several times."`
	Unset []string `short:"u" placeholder:"FIELD" help:"Take a field away."`
	Force bool     `help:"Keep it even if its test fails; without a test."`
	JSON  bool     `name:"json" help:"Print what is kept, and the test, as JSON."`
}

const fieldHelp = `Fields, as YAML or with --set:

  sftp.host, sftp.port, sftp.user, sftp.path          the server; path is /in or, on Windows, /C:/in
  sftp.password, sftp.private_key, sftp.passphrase    secrets; better as FIELD=@FILE. They are sealed and never shown again
  sftp.host_keys                                      [SHA256:…] or lines of known_hosts; a test shows what the server has
  sftp.key_exchanges, .ciphers, .macs                 lists, best first; none for the modern ones
  sftp.verify                                         size, or sha256: each file is read back before it gets its name
  sftp.naming                                         hidden, suffix, folder or none: how a file gets its name; a test says what works
  sftp.checksum_file, sftp.receipt                    true: NAME.sha256 beside each file; a signed receipt of what was read back
  sftp.connect_timeout, .idle_timeout, .keepalive, .concurrency
  mail                                                [who@example.com]: gets a link instead of a file
  bucket, bucket_key_id, bucket_secret                s3://archives?region=eu-central-1, and an access key for it
  trails                                              [activity, access]
  schedule.cron, schedule.time_zone                   0 15 1 * * * (seconds first), Asia/Tokyo
  schedule.period, schedule.since                     24h: what one archive holds; 2026-11-01T00:00:00Z
  format, profile, cef_overflow, spreadsheet_safe     as the flags of kansa export start; none for the sealed CSV itself
  filter.event, filter.source, …                      only such events
  age_recipients                                      [age1…]: encrypt to these public keys
  notify                                              [who@example.com]: mailed when deliveries fail, and when they work again

  kansa destination add acme/archive -s sftp.host=sftp.example.com -s sftp.user=kansa -s sftp.password=@pw \
        -s sftp.host_keys='[SHA256:…]' -s sftp.path=/incoming -s schedule.cron='0 15 1 * * *' -s schedule.time_zone=Asia/Tokyo
  kansa destination edit acme/archive -s sftp.path=/archives`

// apply changes fields, as JSON has them.
func (f *fieldFlags) apply(e *env, fields map[string]any) error {
	if f.File != "" {
		data, err := readFile(e, f.File)
		if err != nil {
			return err
		}
		var given map[string]any // the library does not add to a map that there is
		if err := yaml.Unmarshal(data, &given); err != nil {
			return fmt.Errorf("%s: %s", f.File, yaml.FormatError(err, false, true))
		}
		merge(fields, given)
	}
	for _, s := range f.Set {
		path, text, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("--set %q: write FIELD=VALUE", s)
		}
		var value any
		if name, ok := strings.CutPrefix(text, "@"); ok {
			data, err := readFile(e, name)
			if err != nil {
				return fmt.Errorf("--set %s: %w", path, err)
			}
			value = strings.TrimRight(string(data), "\r\n")
			if strings.Contains(value.(string), "PRIVATE KEY") {
				value = string(data) // its last line ends
			}
		} else if err := yaml.Unmarshal([]byte(text), &value); err != nil {
			return fmt.Errorf("--set %s: %s", path, yaml.FormatError(err, false, true))
		}
		if err := setField(fields, path, value); err != nil {
			return err
		}
	}
	for _, path := range f.Unset {
		if err := setField(fields, path, nil); err != nil {
			return err
		}
	}
	return nil
}

// merge sets the fields of from, and leaves others, nested ones too, as they are.
func merge(fields, from map[string]any) {
	for name, value := range from {
		old, isMap := fields[name].(map[string]any)
		if given, ok := value.(map[string]any); ok && isMap {
			merge(old, given)
			continue
		}
		fields[name] = value
	}
}

func readFile(e *env, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(e.stdin)
	}
	return os.ReadFile(name)
}

// setField sets a field by its path, or takes it away if the value is nil.
func setField(fields map[string]any, path string, value any) error {
	names := strings.Split(path, ".")
	for _, n := range names[:len(names)-1] {
		inner, ok := fields[n].(map[string]any)
		if !ok {
			if fields[n] != nil {
				return fmt.Errorf("field %s: %s has no fields", path, n)
			}
			inner = map[string]any{}
			fields[n] = inner
		}
		fields = inner
	}
	if last := names[len(names)-1]; value == nil {
		delete(fields, last)
	} else {
		fields[last] = value
	}
	return nil
}

// destination reads fields strictly.
func destination(fields map[string]any) (d exporter.Destination, err error) {
	data, err := json.Marshal(fields)
	if err != nil {
		return d, fmt.Errorf("read the fields: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return d, fmt.Errorf("%w: see kansa destination add --help for the fields", err)
	}
	return d, nil
}

// keep saves d and prints what became of it.
func (f *fieldFlags) keep(e *env, c *broker.Client, d exporter.Destination, revision uint64) error {
	saved, err := operatorOf(c).SaveDestination(e.ctx, d, revision, !f.Force)
	if err != nil {
		return err
	}
	if f.JSON {
		if err := json.NewEncoder(e.stdout).Encode(saved); err != nil {
			return err
		}
	} else {
		if saved.Test != nil {
			if err := printTest(e.stdout, saved.Test); err != nil {
				return err
			}
		}
		if saved.Destination == nil {
			fmt.Fprintln(e.stdout, "\nNothing was kept. Mend it and try again, or keep it as it is with --force.")
		} else {
			fmt.Fprintf(e.stdout, "Destination %s/%s is kept.\n", d.Organization, d.Name)
		}
	}
	if saved.Destination == nil {
		return errFailed
	}
	return nil
}

type destinationAddCmd struct {
	natsFlags
	destinationName
	fieldFlags
}

func (*destinationAddCmd) Help() string { return fieldHelp }

func (c *destinationAddCmd) Run(e *env) error {
	organization, name, err := c.split()
	if err != nil {
		return err
	}
	fields := map[string]any{}
	if err := c.apply(e, fields); err != nil {
		return err
	}
	fields["organization"], fields["name"] = organization, name
	d, err := destination(fields)
	if err != nil {
		return err
	}
	client, err := c.connect(e.ctx, "destination")
	if err != nil {
		return err
	}
	defer client.Close()
	return c.keep(e, client, d, 0)
}

type destinationEditCmd struct {
	natsFlags
	destinationName
	fieldFlags
}

func (*destinationEditCmd) Help() string {
	return "Fields that are not named stay as they are, secrets too, unless the server is another.\n\n" + fieldHelp
}

func (c *destinationEditCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "destination")
	if err != nil {
		return err
	}
	defer client.Close()
	have, err := findDestination(e, client, &c.destinationName)
	if err != nil {
		return err
	}
	if have.SFTP == nil && have.Bucket == "" && len(have.Mail) == 0 {
		return fmt.Errorf("edit destination %s: %s: remove it with kansa destination remove %s, and add it again", c.Name, have.Problem, c.Name)
	}
	data, err := json.Marshal(have.Destination.Destination)
	if err != nil {
		return fmt.Errorf("read the destination: %w", err)
	}
	fields := map[string]any{}
	if err := json.Unmarshal(data, &fields); err != nil {
		return fmt.Errorf("read the destination: %w", err)
	}
	if err := c.apply(e, fields); err != nil {
		return err
	}
	d, err := destination(fields)
	if err != nil {
		return err
	}
	if d.Organization != have.Organization || d.Name != have.Name {
		return errors.New("a destination keeps its name: add another and remove this one")
	}
	return c.keep(e, client, d, have.Meta.Revision)
}

func findDestination(e *env, client *broker.Client, n *destinationName) (*operator.DestinationStatus, error) {
	organization, name, err := n.split()
	if err != nil {
		return nil, err
	}
	all, err := operatorOf(client).Destinations(e.ctx, organization)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Name == name {
			return &all[i], nil
		}
	}
	return nil, fmt.Errorf("there is no destination %s: see kansa destination list", n.Name)
}

type destinationShowCmd struct {
	natsFlags
	destinationName
	JSON bool `name:"json" help:"Print it as JSON, with its health."`
}

func (c *destinationShowCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "destination")
	if err != nil {
		return err
	}
	defer client.Close()
	d, err := findDestination(e, client, &c.destinationName)
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(e.stdout).Encode(d)
	}
	text, err := yaml.Marshal(d.Destination.Destination)
	if err != nil {
		return fmt.Errorf("print the destination: %w", err)
	}
	_, err = e.stdout.Write(text)
	return err
}

type destinationTestCmd struct {
	natsFlags
	destinationName
	JSON bool `name:"json" help:"Print the report as JSON."`
}

func (*destinationTestCmd) Help() string {
	return "It is tried from where the exporter runs. Nothing is left on the server. Exit code 1 if something does not work."
}

func (c *destinationTestCmd) Run(e *env) error {
	organization, name, err := c.split()
	if err != nil {
		return err
	}
	client, err := c.connect(e.ctx, "destination")
	if err != nil {
		return err
	}
	defer client.Close()
	r, err := operatorOf(client).TestDestination(e.ctx, organization, name)
	if err != nil {
		return err
	}
	if c.JSON {
		err = json.NewEncoder(e.stdout).Encode(r)
	} else {
		err = printTest(e.stdout, r)
	}
	if err == nil && !r.OK {
		return errFailed
	}
	return err
}

func printTest(w io.Writer, r *exporter.TestReport) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	words := map[sftp.State]string{sftp.StepOK: "ok", sftp.StepWarning: "WARNING", sftp.StepFailed: "FAILED", sftp.StepNotTried: "not tried"}
	for _, s := range r.Steps {
		took := ""
		if s.State != sftp.StepNotTried {
			took = s.Took.Round(time.Millisecond).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", words[s.State], s.Name, took, s.Found)
	}
	if err := t.Flush(); err != nil || r.SFTP == nil {
		return err
	}
	if o := r.SFTP.Offers; o != nil {
		fmt.Fprintln(w, "\nThe server offers (* chosen, ! weak):")
		for _, list := range []struct {
			what, chosen string
			names        []string
		}{
			{"key exchange", r.SFTP.KeyExchange, o.KeyExchanges},
			{"host key", r.SFTP.HostKey, o.HostKeyAlgorithms},
			{"cipher", r.SFTP.Cipher, o.Ciphers},
			{"MAC", r.SFTP.MAC, o.MACs},
		} {
			marked := make([]string, len(list.names))
			for i, name := range list.names {
				if marked[i] = name; name == list.chosen {
					marked[i] = "*" + name
				}
				if sftp.Legacy(name) {
					marked[i] += "!"
				}
			}
			fmt.Fprintf(t, "  %s\t%s\n", list.what, strings.Join(marked, " "))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if r.SFTP.Fingerprint != "" && !r.SFTP.HostKeyAccepted {
		fmt.Fprintf(w, "\nTo accept this server's key, once its administrator has confirmed it, add one of these to sftp.host_keys:\n  %s\n  %s\n",
			r.SFTP.Fingerprint, r.SFTP.KnownHosts)
	}
	return nil
}

type destinationListCmd struct {
	natsFlags
	Organization string `short:"o" help:"Only those of this organization."`
	JSON         bool   `name:"json" help:"One JSON object a line."`
}

func (c *destinationListCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "destination")
	if err != nil {
		return err
	}
	defer client.Close()
	all, err := operatorOf(client).Destinations(e.ctx, c.Organization)
	if err != nil {
		return err
	}
	if c.JSON {
		return jsonLines(e, all)
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DESTINATION\tTO\tSTATE\tLAST SUCCESS\tDELIVERED UNTIL\tNEXT RUN\tFAILURES\tLAST ERROR")
	for i := range all {
		d := &all[i]
		to := d.Bucket
		switch {
		case d.SFTP != nil:
			to = "sftp://" + d.SFTP.User + "@" + d.SFTP.Address()
		case len(d.Mail) > 0:
			to = strings.Join(d.Mail, ",")
		}
		fmt.Fprintf(t, "%s/%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", d.Organization, d.Name, to, d.State, when(d.Health.LastSuccess), when(d.Health.Next),
			nextRun(d.NextRun), d.Health.Failures, shorten(cmp.Or(d.Problem, d.Health.LastError), 80))
	}
	return t.Flush()
}

// nextRun is when the next archive is due; one that is due already waits for its last hour, or fails.
func nextRun(t time.Time) string {
	if !t.IsZero() && t.Before(time.Now()) {
		return "due since " + when(t)
	}
	return when(t)
}

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.RFC3339)
}

type destinationPauseCmd struct {
	natsFlags
	destinationName
}

func (c *destinationPauseCmd) Run(e *env) error {
	return pause(e, &c.natsFlags, &c.destinationName, true)
}

type destinationResumeCmd struct {
	natsFlags
	destinationName
}

func (c *destinationResumeCmd) Run(e *env) error {
	return pause(e, &c.natsFlags, &c.destinationName, false)
}

func pause(e *env, f *natsFlags, n *destinationName, paused bool) error {
	organization, name, err := n.split()
	if err != nil {
		return err
	}
	client, err := f.connect(e.ctx, "destination")
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := operatorOf(client).PauseDestination(e.ctx, organization, name, paused); err != nil {
		return err
	}
	if paused {
		fmt.Fprintf(e.stdout, "%s is paused. What is due is kept until kansa destination resume.\n", n.Name)
	} else {
		fmt.Fprintf(e.stdout, "%s goes on where it stopped.\n", n.Name)
	}
	return nil
}

type destinationRemoveCmd struct {
	natsFlags
	destinationName
}

func (c *destinationRemoveCmd) Run(e *env) error {
	organization, name, err := c.split()
	if err != nil {
		return err
	}
	client, err := c.connect(e.ctx, "destination")
	if err != nil {
		return err
	}
	defer client.Close()
	if err := operatorOf(client).RemoveDestination(e.ctx, organization, name); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s is removed.\n", c.Name)
	return nil
}
