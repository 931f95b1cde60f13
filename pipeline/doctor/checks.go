package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/control"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/operator"
)

// serverIsSafe looks at the broker's version and settings. Whether it syncs it says on its monitoring address alone, so
// that takes the configuration; without it, each process asked at its start, and says so among the facts.
func serverIsSafe(ctx context.Context, p *patient) error {
	o := broker.Options{AssumeSyncAlways: true}
	if p.Config != nil && p.Config.NATS.URL != "" {
		o = broker.Options{MonitorURL: p.Config.NATS.MonitorURL, AssumeSyncAlways: p.Config.NATS.AssumeSyncAlways}
	}
	if err := p.Client.CheckServer(ctx, o); err != nil {
		p.find(health.Failing, "broker", "broker", "set the server up as deploy/nats does; no process of Kansa starts before", "%v", err)
	}
	return nil
}

// Bounds of how full a stream or an account may be.
const (
	filling = 0.8
	full    = 0.95
)

func (p *patient) fills(where, check, remedy string, used uint64, most int64) {
	if most <= 0 {
		return
	}
	share := float64(used) / float64(most)
	severity := health.Warning
	if share >= full {
		severity = health.Failing
	}
	if share >= filling {
		p.find(severity, where, check, remedy, "it is %.0f %% full: %s of %s", 100*share, health.Size(used), health.Size(uint64(most)))
	}
}

func accountHasRoom(ctx context.Context, p *patient) error {
	info, err := p.Client.JS.AccountInfo(ctx)
	if err != nil {
		return err
	}
	p.fills("broker", "account", "give the account, or jetstream, more max_file_store", info.Store, info.Limits.MaxStore)
	return nil
}

func streamsAreWell(ctx context.Context, p *patient) error {
	found := map[string]bool{}
	list := p.Client.JS.ListStreams(ctx)
	for info := range list.Info() {
		if slices.Contains(broker.Streams(), info.Config.Name) {
			found[info.Config.Name] = true
			p.stream(info)
		}
	}
	if err := list.Err(); err != nil {
		return fmt.Errorf("list the streams: %w", err)
	}
	for _, name := range broker.Streams() {
		if !found[name] {
			p.find(health.Failing, "stream "+name, "streams", "restore it from its backup (deploy/RUNBOOK.md); a process that starts makes an empty one", "it is not there")
		}
	}
	return nil
}

func (p *patient) stream(info *jetstream.StreamInfo) {
	where := "stream " + info.Config.Name
	if err := broker.CheckStream(info.Config); err != nil {
		p.find(health.Failing, where, "streams", "", "%v", err)
	}
	if info.Config.Storage != jetstream.FileStorage {
		p.find(health.Failing, where, "streams", "back it up, delete it, and restore it with file storage", "it is kept in memory")
	}
	p.fills(where, "room", "see to the writers if they are behind; or raise streams.audit_max_bytes, or lower streams.audit_max_age",
		info.State.Bytes, info.Config.MaxBytes)
	if p.Config != nil && info.Config.Replicas != p.Config.Streams.Replicas {
		p.find(health.Warning, where, "replicas", "restart a process with this configuration: it brings the stream up to date",
			"it has %d replicas, streams.replicas is %d", info.Config.Replicas, p.Config.Streams.Replicas)
	}
	if info.Cluster == nil || info.Config.Replicas <= 1 {
		return
	}
	if info.Cluster.Leader == "" {
		p.find(health.Failing, where, "replicas", "start the NATS servers that are down: nats server report jetstream", "it has no leader")
	}
	if n := len(info.Cluster.Replicas) + 1; n < info.Config.Replicas {
		p.find(health.Warning, where, "replicas", "start the NATS servers that are down: nats stream report", "it has %d of %d replicas", n, info.Config.Replicas)
	}
	for _, r := range info.Cluster.Replicas {
		switch {
		case r.Offline:
			p.find(health.Warning, where, "replicas", "start the NATS server "+r.Name, "the replica on %s is offline", r.Name)
		case !r.Current:
			p.find(health.Warning, where, "replicas", "wait; if it stays, look at the log and disk of "+r.Name,
				"the replica on %s is behind by %d messages, last heard of %s ago", r.Name, r.Lag, r.Active.Round(time.Millisecond))
		}
	}
}

// Bounds of the age of the first message that is not stored.
const (
	behind    = time.Minute
	farBehind = 10 * time.Minute
)

func consumersKeepUp(ctx context.Context, p *patient) error {
	const restored = "start the role, or wait: a running one makes it again when its lease is over"
	missing := func(name string, err error) error {
		if !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return err
		}
		p.find(health.Failing, "consumer "+name, "consumers", restored, "it is not there, so nobody is given what it should: %v", err)
		return nil
	}
	for stream, name := range map[string]string{broker.StreamHours: broker.ConsumerRollup, broker.StreamExports: broker.ConsumerExporter} {
		if _, err := p.Client.JS.Consumer(ctx, stream, name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			if err := missing(name, err); err != nil {
				return err
			}
		}
	}
	stream, err := p.Client.JS.Stream(ctx, broker.StreamAudit)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil // which is another check's
	}
	if err != nil {
		return err
	}
	far := floor.Floor{Broker: p.Client, Stream: stream}
	shards, age, err := far.Lag(ctx)
	if err != nil {
		return missing(broker.ConsumerWriter, err)
	}
	waiting := uint64(0)
	for _, s := range shards {
		waiting += s.NumPending + uint64(s.NumAckPending)
	}
	severity := health.Warning
	if age >= farBehind {
		severity = health.Failing
	}
	if age >= behind {
		p.find(severity, "consumer "+broker.ConsumerWriter, "lag", "deploy/RUNBOOK.md, Lag; if all writers work: kansa run writer, once more",
			"the first message that is not stored is %s old, and %d wait", age.Round(time.Second), waiting)
	}
	return nil
}

// processesAreThere tells which roles nobody has, and what each process found.
func processesAreThere(_ context.Context, p *patient) error {
	has, versions := map[string]bool{}, map[string]bool{}
	for i := range p.seen {
		s := &p.seen[i]
		for _, r := range s.Roles {
			has[r] = true
		}
		versions[s.Version] = true
		if s.Status == nil {
			p.find(health.Failing, s.Name(), "processes", "look at its log, and start it again", "it says that it is there, and not how it is: it hangs")
			continue
		}
		for _, f := range s.Status.Health.Findings {
			if f.Check == "dead letters" || f.Check == "room" || f.Check == "full" {
				continue // the doctor's own check has more of it
			}
			where := s.Name()
			if f.Role != "kansa" {
				where += " " + f.Role
			}
			p.add(Finding{f.Severity, where, f.Check, f.Reason, f.Remedy})
		}
	}
	if len(p.seen) == 0 {
		p.find(health.Failing, "processes", "processes", "kansa up, or kansa run ROLE …; older versions do not answer", "no process of Kansa answers")
		return nil
	}
	what := map[pipeline.Role]string{
		pipeline.RoleWriter: "nothing is stored", pipeline.RoleRollup: "no hour is sealed", pipeline.RoleExporter: "nothing is delivered",
		pipeline.RoleAPI: "nobody can look, and links do not work", pipeline.RoleGateway: "nothing is taken by HTTP",
	}
	for _, r := range pipeline.Roles {
		severity := health.Failing
		if r == pipeline.RoleGateway || r == pipeline.RoleAPI { // not everybody wants one
			severity = health.Warning
		}
		if !has[string(r)] {
			p.find(severity, "role "+string(r), "processes", "kansa run "+string(r), "no %s is running: %s", r, what[r])
		}
	}
	if len(versions) > 1 {
		p.find(health.Warning, "processes", "versions", "bring all to one version: deploy/RUNBOOK.md, Upgrade", "%d versions of Kansa are running", len(versions))
	}
	return nil
}

// apart is how far clocks may differ: edges of gaps are as exact as they are.
const apart = time.Second

func clocksAgree(ctx context.Context, p *patient) error {
	differs := func(where string, ahead, give time.Duration) {
		if ahead.Abs() > apart+give {
			p.find(health.Warning, where, "clocks", "set the clocks by NTP", "its clock and this machine's are %s apart", ahead.Round(10*time.Millisecond))
		}
	}
	for i := range p.seen {
		differs(p.seen[i].Name(), p.seen[i].Ahead, p.seen[i].Give)
	}
	asked := time.Now()
	stream, err := p.Client.JS.Stream(ctx, broker.StreamHours)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	give := time.Since(asked) / 2
	differs("broker", stream.CachedInfo().TimeStamp.Sub(asked.Add(give)), give)
	return nil
}

func deadLettersWait(ctx context.Context, p *patient) error {
	census, err := deadletter.Causes(ctx, p.Client.JS, "")
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, c := range census.Causes {
		p.find(health.Warning, "stream "+broker.StreamDeadLetter, "dead letters", "kansa deadletter list; correct the producer, then kansa deadletter replay or discard",
			"%d dead letters, since %s: %s", c.Letters, c.First.Format(time.RFC3339), c.Example)
	}
	return nil
}

// deliveriesSucceed asks the exporters for the destinations, as kansa destination list does.
func deliveriesSucceed(ctx context.Context, p *patient) error {
	all, err := (operator.Client{NC: p.Client.NC}).Destinations(ctx, "")
	if errors.Is(err, control.ErrNobody) {
		return nil // that there is no exporter is another check's
	}
	if err != nil {
		return err
	}
	for i := range all {
		d := &all[i]
		id := d.Organization + "/" + d.Name
		switch d.State {
		case "unreadable":
			p.find(health.Warning, "destination "+id, "schedules", "kansa destination remove "+id+", and add it again", "it delivers nothing: %s", d.Problem)
		case "failing":
			p.find(health.Warning, "destination "+id, "deliveries", "kansa destination test "+id, "deliveries have failed since %s, %d times: %s",
				d.Health.FailingSince.Format(time.RFC3339), d.Health.Failures, d.Health.LastError)
		case "paused":
			p.find(health.Warning, "destination "+id, "deliveries", "kansa destination resume "+id, "somebody paused it: nothing is delivered there")
		}
	}
	return nil
}

// has tells whether a process answered that has a role, and so makes the role's checks.
func (p *patient) has(role pipeline.Role) bool {
	for i := range p.seen {
		if p.seen[i].Status != nil && slices.Contains(p.seen[i].Roles, string(role)) {
			return true
		}
	}
	return false
}

// accountsAgree is a check of the rollup; without one, what it left is looked at.
func accountsAgree(ctx context.Context, p *patient) error {
	if p.has(pipeline.RoleRollup) {
		return nil
	}
	kv, err := p.Client.JS.KeyValue(ctx, broker.BucketRollup)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	hour := time.Hour
	if p.Config != nil {
		hour = p.Config.Rollup.Hour
	}
	progress := rollup.Progress{JS: p.Client.JS, KV: kv}
	stopped, err := progress.Stopped(ctx)
	if stopped != nil {
		p.find(health.Failing, "rollup", "sealing", "kansa run rollup, then kansa repair", "nothing is sealed, of any organization, since %s: %s", stopped.Since.Format(time.RFC3339), stopped.Reason)
	}
	if err != nil {
		return err
	}
	blocked, err := progress.Blocks(ctx, hour)
	for _, b := range blocked {
		p.find(health.Failing, "partition "+b.Path(), "agreement", "kansa run rollup, then kansa repair", "neither it nor what follows it is sealed: its %s", b.Reason)
	}
	return err
}

// keysLast is a check of the API; without one, the keys are looked at here.
func keysLast(ctx context.Context, p *patient) error {
	if p.has(pipeline.RoleAPI) {
		return nil
	}
	kv, err := p.Client.JS.KeyValue(ctx, broker.BucketAccess)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	all, err := (&access.Store{KV: kv}).Keys(ctx, "")
	for i := range all {
		if expiry := health.Expiry("the API key "+all[i].Name, all[i].Expires); expiry != nil {
			p.find(health.Warning, "API keys", "keys", "make another key, give it to who has the old one, and revoke that", "%v", expiry)
		}
	}
	return err
}

// filesAreWell looks at the files of the configuration from here. Where a process runs with it, it does so itself.
func filesAreWell(ctx context.Context, p *patient) error {
	if p.Config == nil {
		return nil
	}
	for name, look := range map[string]func(context.Context) error{
		"files":        pipeline.SecretFiles(p.Config, nil).Look,
		"certificates": (&health.Certificates{Files: pipeline.CertificateFiles(p.Config)}).Look,
	} {
		if err := look(ctx); err != nil {
			r := health.Run(ctx, []health.Check{{Name: name, Severity: health.Warning, Look: func(context.Context) error { return err }}})
			for _, f := range r.Findings {
				p.add(Finding{f.Severity, "this machine", f.Check, f.Reason, f.Remedy})
			}
		}
	}
	return nil
}
