package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema/codec"
)

// phase is what one organization had in one stretch of time.
type phase struct {
	Name         string             `json:"name"`
	Seconds      float64            `json:"seconds"`
	Published    int                `json:"published"`
	Stored       int                `json:"stored"`
	Refused      map[string]int     `json:"refused"` // answers other than success
	StoreP50     float64            `json:"publish_to_queryable_p50_ms"`
	StoreP99     float64            `json:"publish_to_queryable_p99_ms"`
	StoreMax     float64            `json:"publish_to_queryable_max_ms"`
	PageP50      float64            `json:"page_p50_ms"`
	PageP99      float64            `json:"page_p99_ms"`
	PageMax      float64            `json:"page_max_ms"`
	Pages        int                `json:"pages"`
	AcceptedP50  float64            `json:"accepted_p50_ms"`
	AcceptedP99  float64            `json:"accepted_p99_ms"`
	LogBytes     int64              `json:"log_bytes"`
	CoresOf      map[string]float64 `json:"cores"`
	accepted     []float64
	stored, page []float64
}

// neighbor is what a run of the attack found.
type neighbor struct {
	Idle       phase                        `json:"idle"`
	Attacked   phase                        `json:"attacked"`
	StoreRatio float64                      `json:"publish_to_queryable_p99_ratio"`
	PageRatio  float64                      `json:"page_p99_ratio"`
	Answers    map[string]map[string]uint64 `json:"answers_to_the_attacker"`
}

// quiet is the organization that must not be harmed.
type quiet struct {
	tenant
	publisher, auditor string

	mu      sync.Mutex
	waiting map[string]time.Time // events that were not seen yet, by when they were published
	all     map[string]bool
	phase   *phase
}

const (
	probeEvery = 100 * time.Millisecond
	// probeSource is the source of the events whose way is measured.
	probeSource = "probe"
)

// neighbor measures an organization alone and while another does its worst.
func (b *bench) neighbor(ctx context.Context) error {
	var runs []neighbor
	t := table{
		title:  "A quiet organization and a loud one",
		header: []string{"run", "events published", "stored", "publish to queryable, p50 ms", "p99 ms", "max ms", "page of 50, p50 ms", "p99 ms", "max ms", "log, kB", "system, cores", "engine, cores", "attacker, cores"},
		notes: []string{
			"One event every 100 ms over HTTP, and one page of the newest 50 events as often. Queryable: a page of the API has the event; the page that is asked for next is in the figure.",
			"The attacker is another organization with 8 keys of each role and an analyst, at another address, on the same machine and cores. Default limits.",
			"A page is asked for when the previous one has come, so there are few under attack, and p99 is the longest.",
		},
	}
	for n := range 2 {
		r, err := b.neighborOnce(ctx)
		if err != nil {
			return err
		}
		runs = append(runs, r)
		for _, p := range []*phase{&r.Idle, &r.Attacked} {
			ms := func(v float64) string { return fmt.Sprintf("%.0f", v) }
			cores := func(name string) string { return fmt.Sprintf("%.2f", p.CoresOf[name]) }
			t.rows = append(t.rows, []string{
				fmt.Sprintf("%d, %s", n+1, p.Name), fmt.Sprint(p.Published), fmt.Sprint(p.Stored), ms(p.StoreP50), ms(p.StoreP99), ms(p.StoreMax),
				ms(p.PageP50), ms(p.PageP99), ms(p.PageMax), fmt.Sprintf("%.1f", float64(p.LogBytes)/1e3), cores("system"), cores("engine"), cores("loud"),
			})
			b.say("neighbor %v", t.rows[len(t.rows)-1])
		}
		t.notes = append(t.notes, fmt.Sprintf("Run %d: p99 attacked / idle: publish to queryable %.1f, page %.1f.", n+1, r.StoreRatio, r.PageRatio))
	}
	got := table{title: "Answers to the attacker, all runs", header: []string{"attack", "answers"}}
	sum := map[string]map[string]uint64{}
	for _, r := range runs {
		for way, answers := range r.Answers {
			for status, n := range answers {
				if sum[way] == nil {
					sum[way] = map[string]uint64{}
				}
				sum[way][status] += n
			}
		}
	}
	for _, way := range slices.Sorted(maps.Keys(sum)) {
		var text []string
		for _, status := range slices.Sorted(maps.Keys(sum[way])) {
			text = append(text, fmt.Sprintf("%s: %d", status, sum[way][status]))
		}
		got.rows = append(got.rows, []string{way, strings.Join(text, ", ")})
	}
	b.result.add("neighbor", runs, t, got)
	return nil
}

func (b *bench) neighborOnce(ctx context.Context) (r neighbor, err error) {
	s, err := b.newStack("neighbor")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	set := systemSettings{Dir: filepath.Join(s.dir, "data"), Log: filepath.Join(s.dir, "log")}
	if b.Pprof != "" {
		set.Profile = filepath.Join(b.Pprof, s.name+"-engine")
	}
	system, err := s.start(ctx, "system", set)
	if err != nil {
		return r, err
	}
	q, attack, err := s.tenants(ctx, system.now())
	if err != nil {
		return r, err
	}
	if r.Idle, err = s.measure(ctx, q, "idle", set.Log, scale(b, 30*time.Second, 20*time.Second), nil); err != nil {
		return r, err
	}
	var attacker *process
	r.Attacked, err = s.measure(ctx, q, "attacked", set.Log, scale(b, 45*time.Second, 30*time.Second), func() (err error) {
		attacker, err = s.start(ctx, "loud", attack)
		return err
	})
	if err != nil {
		return r, err
	}
	last, err := attacker.finish(ctx)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(last.Answers), &r.Answers); err != nil {
		return r, fmt.Errorf("decode the attacker's answers: %w", err)
	}
	if err := q.settle(ctx, &r); err != nil {
		return r, err
	}
	for _, p := range []*phase{&r.Idle, &r.Attacked} {
		p.finish()
	}
	r.StoreRatio, r.PageRatio = r.Attacked.StoreP99/r.Idle.StoreP99, r.Attacked.PageP99/r.Idle.PageP99
	if want := r.Idle.Published + r.Attacked.Published; r.Idle.Stored+r.Attacked.Stored != want {
		return r, fmt.Errorf("the quiet organization published %d events, and %d are stored", want, r.Idle.Stored+r.Attacked.Stored)
	}
	return r, nil
}

// tenants makes the keys of both organizations, and has each publish something to read.
func (s *stack) tenants(ctx context.Context, system report) (*quiet, *loudSettings, error) {
	operator, err := operatorKey(filepath.Join(s.dir, "data"))
	if err != nil {
		return nil, nil, err
	}
	operator = strings.TrimSpace(operator)
	q := &quiet{tenant: tenant{URL: system.URL, Address: "127.0.0.1", Organization: "quiet"}, waiting: map[string]time.Time{}, all: map[string]bool{}}
	l := &loudSettings{tenant: tenant{URL: system.URL, Address: "127.0.0.2", Organization: "loud"}, NATS: system.NATS, Only: s.b.Attack}
	q.open()
	l.open()
	if q.publisher, err = q.key(ctx, operator, "publisher", 0); err != nil {
		return nil, nil, err
	}
	if q.auditor, err = q.key(ctx, operator, "auditor", 0); err != nil {
		return nil, nil, err
	}
	for n := range 8 {
		for role, to := range map[string]*[]string{"publisher": &l.Publisher, "auditor": &l.Auditor} {
			key, err := l.key(ctx, operator, role, n)
			if err != nil {
				return nil, nil, err
			}
			*to = append(*to, key)
		}
	}
	if l.Admin, err = l.key(ctx, operator, "admin", 0); err != nil {
		return nil, nil, err
	}
	if err := l.make(ctx, "/api/v1/organizations/loud/analysts", operator, map[string]any{"name": "eve"}, &l.Analyst); err != nil {
		return nil, nil, err
	}
	for of, n := range map[*tenant]int{&q.tenant: 20, &l.tenant: scale(s.b, 300, 100)} {
		key := q.publisher
		if of == &l.tenant {
			key = l.Publisher[0]
		}
		bodies, err := of.batches(n, 1000)
		if err != nil {
			return nil, nil, err
		}
		for _, body := range bodies {
			for {
				status, answer, err := of.do(ctx, http.MethodPost, "/api/v1/events", key, codec.ContentNDJSON, body)
				if err != nil {
					return nil, nil, err
				}
				if status == http.StatusAccepted {
					break
				}
				if status != http.StatusTooManyRequests {
					return nil, nil, fmt.Errorf("publish for %s: %d: %.300s", of.Organization, status, answer)
				}
				if err := sleep(ctx, 100*time.Millisecond); err != nil {
					return nil, nil, err
				}
			}
		}
	}
	return q, l, sleep(ctx, 5*time.Second) // until merges have gone by
}

// measure has the quiet organization publish and read for so long. begin, if any, begins the attack first.
func (s *stack) measure(ctx context.Context, q *quiet, name, log string, length time.Duration, begin func() error) (p phase, err error) {
	p.Name, p.Refused = name, map[string]int{}
	q.phase = &p
	written := func() int64 {
		info, err := os.Stat(log)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	if begin != nil {
		if err := begin(); err != nil {
			return p, err
		}
		if err := sleep(ctx, 2*time.Second); err != nil { // until all of it has begun
			return p, err
		}
	}
	before, logged, began := s.busy(), written(), time.Now()
	measuring, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { q.every(measuring, func() { q.page(ctx) }) })
	all.Go(func() {
		var published sync.WaitGroup
		q.every(measuring, func() { published.Go(func() { q.publish(ctx) }) })
		published.Wait()
	})
	looking, stop := context.WithCancel(ctx)
	var looks sync.WaitGroup
	looks.Go(func() { q.look(looking) })
	all.Wait()
	took := time.Since(began)
	// The events that are still on their way arrive under attack, too.
	for limit := time.Now().Add(time.Minute); q.missing() > 0 && time.Now().Before(limit) && ctx.Err() == nil; {
		if err := sleep(ctx, probeEvery); err != nil {
			break
		}
	}
	stop()
	looks.Wait()
	p.Seconds, p.LogBytes, p.CoresOf = took.Seconds(), written()-logged, map[string]float64{}
	for name, after := range s.busy() {
		p.CoresOf[name] = (after - before[name]).Seconds() / time.Since(began).Seconds()
	}
	return p, ctx.Err()
}

// busy is the CPU time of each process.
func (s *stack) busy() map[string]time.Duration {
	all := map[string]time.Duration{}
	for _, p := range s.started {
		all[p.name] = p.usage().CPU
		if engine := p.now().Engine; engine != 0 {
			all["engine"] = usageOf(engine).CPU
		}
	}
	return all
}

// every runs something at each tick, if the last one has returned.
func (q *quiet) every(ctx context.Context, run func()) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			run()
		}
	}
}

func (q *quiet) missing() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// publish publishes one event, again until it is accepted.
func (q *quiet) publish(ctx context.Context) {
	id, err := uuid.NewV7()
	if err != nil {
		return
	}
	began := time.Now()
	body := fmt.Appendf(nil, `{"id":%q,"occurred_at":%q,"organization":"quiet","trail":"activity","source":%q,"event":"bench.probed","action":"do"}`,
		id, began.UTC().Format(time.RFC3339Nano), probeSource)
	q.mu.Lock()
	q.waiting[id.String()], q.all[id.String()] = began, true
	q.phase.Published++
	q.mu.Unlock()
	for ctx.Err() == nil {
		status, _, err := q.do(ctx, http.MethodPost, "/api/v1/events", q.publisher, codec.ContentJSON, body, "Idempotency-Key", id.String())
		q.mu.Lock()
		if err == nil && status == http.StatusAccepted {
			q.phase.accepted = append(q.phase.accepted, ms(time.Since(began)))
			q.mu.Unlock()
			return
		}
		q.phase.Refused[fmt.Sprint("publish ", status)]++
		q.mu.Unlock()
		if sleep(ctx, 20*time.Millisecond) != nil {
			return
		}
	}
}

// look asks for the newest page again and again, and notes which events are there.
func (q *quiet) look(ctx context.Context) {
	for sleep(ctx, 10*time.Millisecond) == nil {
		if q.missing() == 0 {
			continue
		}
		var page struct{ Events []struct{ ID string } }
		status, answer, err := q.do(ctx, http.MethodGet, "/api/v1/audit/events?source="+probeSource+"&limit=200", q.auditor, "", nil)
		if ctx.Err() != nil {
			return
		}
		q.mu.Lock()
		if err != nil || status != http.StatusOK || json.Unmarshal(answer, &page) != nil {
			q.phase.Refused[fmt.Sprint("look ", status)]++
		}
		for _, e := range page.Events {
			if began, ok := q.waiting[e.ID]; ok {
				q.phase.stored = append(q.phase.stored, ms(time.Since(began)))
				delete(q.waiting, e.ID)
			}
		}
		q.mu.Unlock()
	}
}

// page reads one as a person does.
func (q *quiet) page(ctx context.Context) {
	began := time.Now()
	status, _, err := q.do(ctx, http.MethodGet, "/api/v1/audit/events?limit=50", q.auditor, "", nil)
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil || status != http.StatusOK {
		q.phase.Refused[fmt.Sprint("page ", status)]++
		return
	}
	q.phase.page = append(q.phase.page, ms(time.Since(began)))
}

// settle waits until all events are stored, and counts them.
func (q *quiet) settle(ctx context.Context, r *neighbor) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		_, text, err := q.do(ctx, http.MethodGet, "/api/v1/audit/logs?format=ndjson&source="+probeSource, q.auditor, "", nil)
		if err != nil {
			return fmt.Errorf("count the quiet organization's events: %w", err)
		}
		stored, rows := 0, map[string]int{}
		for line := range strings.Lines(string(text)) {
			var e struct{ ID string }
			if json.Unmarshal([]byte(line), &e) == nil && q.all[e.ID] {
				if rows[e.ID]++; rows[e.ID] > 1 {
					return fmt.Errorf("event %s of the quiet organization is stored twice", e.ID)
				}
				stored++
			}
		}
		r.Idle.Stored, r.Attacked.Stored = r.Idle.Published, stored-r.Idle.Published
		if stored >= len(q.all) {
			return nil
		}
		if sleep(ctx, time.Second) != nil {
			return nil // the caller tells
		}
	}
}

func (p *phase) finish() {
	p.Pages = len(p.page)
	p.StoreP50, p.StoreP99, p.StoreMax = quantile(p.stored, 0.5), quantile(p.stored, 0.99), quantile(p.stored, 1)
	p.PageP50, p.PageP99, p.PageMax = quantile(p.page, 0.5), quantile(p.page, 0.99), quantile(p.page, 1)
	p.AcceptedP50, p.AcceptedP99 = quantile(p.accepted, 0.5), quantile(p.accepted, 0.99)
}
