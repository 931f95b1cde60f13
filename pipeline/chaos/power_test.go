//go:build linux

package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema/sample"
)

// make chaos sets these, besides those of TestChaos.
var (
	cuts        = flag.Int("cuts", 3, "how often the power is cut")
	cutsPerDisk = flag.Int("cuts-per-disk", 10, "cuts of one disk; part of what is drawn from")
	powerResult = flag.String("power-result", "", "where to write what came of the power cuts, as JSON")
	completeIn  = flag.Duration("complete", time.Minute, "bounds the time from the start after a cut until the system is ready and the table complete")
)

// powerHour is long enough for a machine that is busy with other tests to seal an hour in it: late sealing is not ready.
const powerHour = 5 * time.Second

// powerReport is what a run of TestPower comes to.
type powerReport struct {
	Seed         uint64         `json:"seed"`
	Date         string         `json:"date"`
	Cuts         int            `json:"cuts"`
	Failed       int            `json:"failed"`
	Kinds        map[string]int `json:"cuts_by_kind"`
	Moments      map[string]int `json:"cuts_by_moment"`
	Acknowledged int            `json:"events_acknowledged"`
	Unsynced     int            `json:"blocks_unsynced"`
	Kept         int            `json:"blocks_unsynced_that_survived"`
	Median       float64        `json:"median_seconds_until_ready_and_complete"`
	P99          float64        `json:"p99_seconds_until_ready_and_complete"`
	Slowest      float64        `json:"slowest_seconds_until_ready_and_complete"`
	Within5      int            `json:"ready_and_complete_within_5_s"`
	Seconds      float64        `json:"seconds"`

	began time.Time
	mu    sync.Mutex
	times []time.Duration
}

func (r *powerReport) write() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Seconds = time.Since(r.began).Seconds()
	if n := len(r.times); n > 0 {
		slices.Sort(r.times)
		r.Median, r.P99, r.Slowest = r.times[n/2].Seconds(), r.times[n*99/100].Seconds(), r.times[n-1].Seconds()
		r.Within5, _ = slices.BinarySearch(r.times, 5*time.Second)
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil || *powerResult == "" {
		return err
	}
	return os.WriteFile(*powerResult, append(text, '\n'), 0o644)
}

// TestPower cuts the power of a whole system under load, again and again. Everything it keeps is on a disk that loses what
// was not synced, or half of it, or the order in which it was written.
func TestPower(t *testing.T) {
	if err := needsVolatileDisk(); err != nil {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	r := &powerReport{Seed: *seed, Date: time.Now().UTC().Format(time.RFC3339), Kinds: map[string]int{}, Moments: map[string]int{}, began: time.Now()}
	t.Cleanup(func() {
		t.Logf("%d cuts, %d failed; ready and complete after %.1f s at most", r.Cuts, r.Failed, r.Slowest)
	})
	for g := 0; g**cutsPerDisk < *cuts; g++ {
		if *generation >= 0 && g != *generation {
			continue
		}
		n := min(*cutsPerDisk, *cuts-g**cutsPerDisk)
		t.Run(fmt.Sprintf("disk %d", g), func(t *testing.T) {
			t.Parallel()
			cutPower(t, g, n, r)
		})
	}
}

func needsVolatileDisk() error {
	if os.Getuid() != 0 {
		return errors.New("power cuts need root, for FUSE, loop devices and mounts")
	}
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("power cuts need %s: %w", path, err)
		}
	}
	for _, name := range []string{"losetup", "mkfs.ext4", "mount", "umount"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("power cuts need %s: %w", name, err)
		}
	}
	return nil
}

// moment is when the power is cut.
type moment string

const (
	anytime      moment = "at any time"
	amidMerge    moment = "while parts are merged"
	afterCleanUp moment = "when parts that were merged are removed"
)

// moments are drawn from; the engine removes merged parts about every 30 s only, which takes long to wait for.
var moments = []moment{anytime, anytime, amidMerge, amidMerge, amidMerge, afterCleanUp}

func cutPower(t *testing.T, g, n int, report *powerReport) {
	// The kernel kills the processes when the thread that started them ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	random := rand.New(rand.NewPCG(*seed, uint64(1_000_000+g)))
	dir := generationDir(t, g)
	plain := random.IntN(2) == 0
	d := newVolatileDisk(t, dir, 6<<30, plain)
	p := newPowered(t, d, dir, random)
	defer p.end()
	var history strings.Builder
	say := func(format string, v ...any) {
		fmt.Fprintf(&history, "%s  "+format+"\n", append([]any{stamp()}, v...)...)
	}
	fail := func(i int, err error) {
		report.mu.Lock()
		report.Failed++
		report.mu.Unlock()
		_ = exec.Command("cp", "-a", d.dir, filepath.Join(dir, "kept")).Run() // it goes with the mount
		t.Errorf("seed %d, cut %d of disk %d: %v\n%s\nEverything is in %s; again: make chaos SEED=%d CUTS=%d GENERATION=%d", *seed, i, g, err, history.String(), dir, *seed, *cuts, g)
	}
	say("noauto_da_alloc %t", plain)
	if err := p.start(t.Context()); err != nil {
		fail(0, err)
		return
	}
	for i := range n {
		how, when := pick(random, losses), pick(random, moments)
		load, err := p.underLoad(t.Context(), random, when)
		if err != nil {
			fail(i, fmt.Errorf("under load: %w", err))
			return
		}
		unsynced, kept, err := d.cut(random, how)
		p.kill()
		acked := load.end()
		if err != nil {
			fail(i, err)
			return
		}
		say("cut %d: %s, %s; of %d unsynced blocks %d survive; %d events acknowledged (%s)", i, when, how, unsynced, kept, acked, load.seen)
		if err := d.again(); err != nil {
			fail(i, err)
			return
		}
		began := time.Now()
		err = p.start(t.Context())
		if err == nil {
			err = p.complete(t.Context())
		}
		took := time.Since(began)
		say("       ready and complete after %s", took.Round(time.Millisecond))
		if err == nil && load.spooling != nil {
			n := load.spooled()
			acked += n
			if err = p.empty(t.Context()); err == nil {
				err = p.complete(t.Context())
			}
			say("       %d more were in the spool", n)
		}
		if err == nil {
			err = p.check(t.Context())
		}
		report.mu.Lock()
		report.Cuts++
		report.Kinds[string(how)]++
		report.Moments[string(load.moment)]++
		report.Acknowledged += acked
		report.Unsynced += unsynced
		report.Kept += kept
		report.times = append(report.times, took)
		report.mu.Unlock()
		if err != nil {
			fail(i, err)
			return
		}
		if err := report.write(); err != nil {
			t.Error(err)
		}
	}
	if err := p.sealed(t.Context()); err != nil {
		fail(n, err)
	}
	if testing.Verbose() {
		t.Logf("\n%s", history.String())
	}
}

// addresses is what a system says when it is up.
type addresses struct{ Broker, Engine, Username, Password, API string }

// powerMain is kansa up; it prints its addresses.
func powerMain(path string) error {
	ctx, stop := untilTerm()
	defer stop()
	c, err := config.Load(path)
	if err != nil {
		return err
	}
	self, err := engineSelf()
	if err != nil {
		return err
	}
	s, err := pipeline.Start(ctx, pipeline.Options{Config: c, Roles: pipeline.Roles, EngineCommand: self, Logger: stderrLogger()})
	if err != nil {
		return err
	}
	err = json.NewEncoder(os.Stdout).Encode(addresses{s.NATSURL(), s.Engine.URL(), s.Engine.Username(), s.Engine.Password(), c.API.Listen})
	if err != nil {
		return errors.Join(err, s.Close())
	}
	select {
	case <-ctx.Done():
	case <-s.Failed():
	}
	return s.Close()
}

// powered is a system whose disk may lose power.
type powered struct {
	disk   *volatileDisk
	dir    string
	config string
	data   string
	log    *os.File
	logger *slog.Logger

	cmd    *exec.Cmd
	ended  chan struct{}
	at     addresses
	table  *store.Store
	events *sample.Source
	acked  map[uuid.UUID]bool // what was published; true if it was acknowledged
	key    string             // of the operator, beside the disk
}

func newPowered(t *testing.T, d *volatileDisk, dir string, r *rand.Rand) *powered {
	t.Helper()
	p := &powered{disk: d, dir: dir, config: filepath.Join(dir, "kansa.yaml"), data: filepath.Join(d.dir, "data"), acked: map[uuid.UUID]bool{}, events: sample.New(r.Uint64(), nil)}
	c := config.Default()
	var err error
	c.DataDir = p.data
	if c.NATS.Port, err = brokertest.FreePort(r.IntN); err != nil {
		t.Fatal(err)
	}
	port, err := brokertest.FreePort(r.IntN)
	if err != nil {
		t.Fatal(err)
	}
	c.API.Listen = fmt.Sprintf("127.0.0.1:%d", port)
	c.Rollup.Hour = powerHour
	c.Limits = config.Limits{PromptBytesPerSecond: 256 << 10}
	text, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if p.log, err = os.OpenFile(filepath.Join(dir, "kansa.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		t.Fatal(err)
	}
	p.logger = slog.New(slog.NewTextHandler(p.log, nil))
	return p
}

// start starts the system and returns when it says that it is up.
func (p *powered) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p.cmd = exec.Command(self)
	p.cmd.Env = append(os.Environ(), envPower+"="+p.config)
	p.cmd.Stderr = p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	fmt.Fprintf(p.log, "== %s: start\n", stamp())
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.ended = make(chan struct{})
	said := make(chan error, 1)
	go func() {
		defer close(p.ended)
		said <- json.NewDecoder(bufio.NewReader(out)).Decode(&p.at)
		_ = p.cmd.Wait() // it is killed
	}()
	select {
	case err = <-said:
	case <-time.After(*completeIn):
		err = fmt.Errorf("it did not say within %s that it is up", *completeIn)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("start after a power cut: %w: see kansa.log", err)
	}
	key, err := os.ReadFile(filepath.Join(p.data, pipeline.OperatorKeyFile))
	if err != nil {
		return err
	}
	p.key = filepath.Join(p.dir, "operator.key")
	if err := os.WriteFile(p.key, key, 0o600); err != nil {
		return err
	}
	p.table, err = store.Open(ctx, store.Options{URL: p.at.Engine, Username: p.at.Username, Password: p.at.Password})
	return err
}

// kill ends the processes, as a power cut does.
func (p *powered) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.ended
	if p.table != nil {
		_ = p.table.Close()
		p.table = nil
	}
}

func (p *powered) end() {
	if p.cmd != nil {
		p.kill()
	}
	_ = p.log.Close()
}

// load is what goes on while the power is cut.
type load struct {
	p       *powered
	stop    context.CancelFunc
	working sync.WaitGroup
	mu      sync.Mutex
	acked   int
	moment  moment // that was met
	seen    string
	// spooling is an application that puts what it publishes into its spool, or nil.
	spooling *application
}

// application is one whose spool is on the disk.
func (p *powered) application(broker string) (*application, error) {
	settings, err := json.Marshal(appSettings{
		Broker: broker, TokenFile: p.key, Spool: filepath.Join(p.disk.dir, diskSpool), PerMessage: 5, RetryFor: time.Second,
	})
	if err != nil {
		return nil, err
	}
	return newApplication(string(settings), p.dir)
}

// spool publishes by the application until ctx ends.
func (l *load) spool(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		l.mu.Lock()
		e := l.p.events.Next()
		l.p.acked[e.ID] = false
		l.mu.Unlock()
		if _, err := l.spooling.publish(ctx, e); err != nil {
			return
		}
	}
}

// end waits until everything has ended, and says how many events were acknowledged.
func (l *load) end() int {
	l.stop()
	l.working.Wait()
	if l.spooling != nil {
		l.spooling.kill()
	}
	return l.acked
}

// spooled has what the application put into its spool count as acknowledged, and says how many events that are.
func (l *load) spooled() int {
	l.spooling.mu.Lock()
	defer l.spooling.mu.Unlock()
	for id := range l.spooling.acked {
		l.p.acked[id] = true
	}
	return len(l.spooling.acked)
}

// underLoad publishes, and returns when the moment has come.
func (p *powered) underLoad(ctx context.Context, r *rand.Rand, when moment) (*load, error) {
	client, err := broker.Connect(ctx, broker.Options{URL: p.at.Broker, Name: "publisher", TokenFile: p.key, Logger: p.logger})
	if err != nil {
		return nil, err
	}
	perMessage := pick(r, []int{1, 5, 50, 500})
	publisher, err := producers.New(client.JS, producers.Config{MaxEvents: perMessage, RetryFor: time.Second, AckTimeout: time.Second, Logger: p.logger})
	if err != nil {
		client.Close()
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	l := &load{p: p, stop: stop, moment: anytime}
	if r.IntN(3) == 0 {
		if l.spooling, err = p.application("nats://127.0.0.1:1"); err != nil { // it cannot reach the broker
			stop()
			client.Close()
			return nil, err
		}
		l.working.Go(func() { l.spool(ctx) })
	}
	perSecond := min(60*perMessage, 2000)
	if when == afterCleanUp {
		perSecond = 100
	}
	l.working.Go(func() { l.publish(ctx, publisher, perSecond); client.NC.Close() })
	if err := p.partsLive(ctx, when); err != nil {
		l.end()
		return nil, err
	}
	at := time.Duration(200+r.IntN(1300)) * time.Millisecond
	if when == anytime {
		time.Sleep(at) // the moment is drawn
		return l, nil
	}
	table := p.table
	l.working.Go(func() { optimize(ctx, table) })
	there := map[string]bool{}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		merging, removed, err := p.parts(there)
		if err != nil {
			l.end()
			return nil, err
		}
		if when == amidMerge && merging > 0 || when == afterCleanUp && removed > 0 {
			l.seen = fmt.Sprintf("%d merges, %d parts removed", merging, removed)
			l.moment = when
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	// Some go on for a moment, so that all of its phases are met.
	time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond)
	return l, nil
}

// publish publishes so many events a second until ctx ends.
func (l *load) publish(ctx context.Context, publisher *producers.Publisher, perSecond int) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var told sync.WaitGroup
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		for range max(1, perSecond/50) {
			l.mu.Lock()
			e := l.p.events.Next()
			l.p.acked[e.ID] = false
			l.mu.Unlock()
			ack, err := publisher.PublishAsync(ctx, e)
			if err != nil {
				break
			}
			told.Go(func() {
				if ack.Wait(context.WithoutCancel(ctx)) == nil {
					l.mu.Lock()
					l.acked++
					l.p.acked[e.ID] = true
					l.mu.Unlock()
				}
			})
		}
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = publisher.Close(closing) // each event's outcome is looked at
	told.Wait()
}

// empty has an application publish what is in the spool.
func (p *powered) empty(ctx context.Context) error {
	a, err := p.application(p.at.Broker)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *completeIn)
	defer cancel()
	return a.close(ctx)
}

// optimize merges again and again what there is.
func optimize(ctx context.Context, table *store.Store) {
	for ctx.Err() == nil {
		if err := table.Conn().Exec(ctx, "OPTIMIZE TABLE audit_events"); err != nil {
			return
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// partsLive has merged parts removed soon, if that is what is to be met, and else as late as the table says.
func (p *powered) partsLive(ctx context.Context, when moment) error {
	statement := "ALTER TABLE audit_events RESET SETTING old_parts_lifetime"
	if when == afterCleanUp {
		statement = "ALTER TABLE audit_events MODIFY SETTING old_parts_lifetime = 1"
	}
	if err := p.table.Conn().Exec(ctx, statement); err != nil {
		return fmt.Errorf("set how long merged parts are kept: %w", err)
	}
	return nil
}

// parts counts the parts that are being made by merges, and those that were there and are removed, of all tables. It adds those that
// are there to before. It looks at the directories: whoever queries system.parts keeps the engine from removing any.
func (p *powered) parts(before map[string]bool) (merging, removed int, err error) {
	dirs, err := filepath.Glob(filepath.Join(p.data, "clickhouse", "data", "store", "*", "*", "*_*_*_*"))
	if err != nil {
		return 0, 0, err
	}
	there := map[string]bool{}
	for _, dir := range dirs {
		switch name := filepath.Base(dir); {
		case strings.HasPrefix(name, "tmp_merge_"):
			merging++
		case !strings.HasPrefix(name, "tmp_") && !strings.HasPrefix(name, "delete_tmp_"):
			there[dir] = true
		}
	}
	for dir := range before {
		if !there[dir] {
			removed++
		}
	}
	maps.Copy(before, there)
	return merging, removed, nil
}

// complete waits until the system says that it is ready, and has each acknowledged event.
func (p *powered) complete(ctx context.Context) error {
	ready := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.at.API+"/readyz", http.NoBody)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(res.Body) // the status is the error
			return fmt.Errorf("readyz: %s: %s", res.Status, body)
		}
		return nil
	}
	return until(ctx, *completeIn, func() error { return errors.Join(ready(), p.allThere(ctx)) })
}

func (p *powered) allThere(ctx context.Context) error {
	stored, err := p.stored(ctx)
	if err != nil {
		return err
	}
	missing, n := 0, 0
	var one uuid.UUID
	for id, acked := range p.acked {
		if acked {
			n++
			if stored[id] == 0 {
				missing++
				one = id
			}
		}
	}
	if missing > 0 {
		return fmt.Errorf("acknowledged and not in the table: %d of %d, such as %s", missing, n, one)
	}
	return nil
}

// stored is how often the table has each event.
func (p *powered) stored(ctx context.Context) (map[uuid.UUID]uint64, error) {
	rows, err := p.table.Conn().Query(ctx, "SELECT id, count() FROM audit_events WHERE source != $1 GROUP BY id", owntrail.Source)
	if err != nil {
		return nil, fmt.Errorf("read the table: %w", err)
	}
	defer rows.Close()
	stored := map[uuid.UUID]uint64{}
	for rows.Next() {
		var id uuid.UUID
		var n uint64
		if err := rows.Scan(&id, &n); err != nil {
			return nil, fmt.Errorf("read the table: %w", err)
		}
		stored[id] = n
	}
	return stored, rows.Err()
}

// check holds what is there against what was promised.
func (p *powered) check(ctx context.Context) error {
	var errs []error
	stored, err := p.stored(ctx)
	if err != nil {
		return err
	}
	for id, n := range stored {
		if _, published := p.acked[id]; !published {
			errs = append(errs, fmt.Errorf("stored and never published: %s", id))
		}
		if n > 1 {
			errs = append(errs, fmt.Errorf("stored %d times: %s", n, id))
		}
	}
	errs = append(errs, p.allThere(ctx), p.verified(ctx))
	if len(errs) > 20 {
		errs = errs[:20]
	}
	return errors.Join(errs...)
}

// verified holds what is sealed against its signatures. An hour may be added while it is read; then it is read again.
func (p *powered) verified(ctx context.Context) error {
	return until(ctx, 5*powerHour, func() error { _, err := p.report(ctx); return err })
}

func (p *powered) report(ctx context.Context) (*verify.Report, error) {
	key, err := os.ReadFile(filepath.Join(p.data, "seal.pub"))
	if err != nil {
		return nil, err
	}
	r, err := verify.Path(ctx, filepath.Join(p.data, "partitions"), verify.Options{Key: strings.TrimSpace(string(key)), FromStart: true})
	if err != nil {
		return nil, err
	}
	var faults []error
	for _, f := range r.Faults {
		faults = append(faults, fmt.Errorf("partition store: %w", f))
	}
	return r, errors.Join(faults...)
}

// sealed waits until as many events are sealed as the table has.
func (p *powered) sealed(ctx context.Context) error {
	var stored uint64
	if err := p.table.Conn().QueryRow(ctx, "SELECT count() FROM audit_events FINAL").Scan(&stored); err != nil {
		return fmt.Errorf("count the events: %w", err)
	}
	return until(ctx, *completeIn, func() error {
		r, err := p.report(ctx)
		if err == nil && r.Rows < stored {
			err = fmt.Errorf("%d events are sealed, and the table had %d", r.Rows, stored)
		}
		return err
	})
}
