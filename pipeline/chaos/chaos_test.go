//go:build linux

package chaos

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// make chaos sets these.
var (
	seed       = flag.Uint64("seed", 1, "what everything is drawn from")
	iterations = flag.Int("iterations", 6, "rounds")
	generation = flag.Int("generation", -1, "run this generation alone")
	perStack   = flag.Int("rounds", 10, "rounds of a generation; part of what is drawn from")
	under      = flag.String("dir", "", "where the directories of generations are made; those that fail stay")
	keepAll    = flag.Bool("keep", false, "keep the directories of generations that went well, too")
	resultFile = flag.String("result", "", "where to write what came of it, as JSON, after each generation anew")
	healWithin = flag.Duration("heal", 3*time.Minute, "bounds the wait after a round, but for what faults themselves take; more on a machine that does other work")
)

// result is what a run comes to.
type result struct {
	Seed        uint64         `json:"seed"`
	Planned     int            `json:"iterations_planned"`
	Iterations  int            `json:"iterations"`
	Failed      int            `json:"failed"`
	Date        string         `json:"date"`
	Cores       int            `json:"cores"`
	Seconds     float64        `json:"seconds"`
	Published   int            `json:"events_published"`
	Acked       int            `json:"events_acknowledged"`
	Stored      int            `json:"events_stored"`
	Archives    int            `json:"archives_by_sftp"`
	Mailed      int            `json:"archives_by_mail"`
	MailedTwice int            `json:"mails_sent_again"`
	Links       int            `json:"links_followed"`
	Faults      map[string]int `json:"faults"`
	LeftOut     []string       `json:"left_out"`
	HealWithin  float64        `json:"heal_within_seconds"`
	MedianHeal  float64        `json:"median_heal_seconds"`
	P99Heal     float64        `json:"p99_heal_seconds"`
	SlowestHeal float64        `json:"slowest_heal_seconds"`
	MeanHeal    float64        `json:"mean_heal_seconds"`

	began time.Time
	mu    sync.Mutex
	heals []time.Duration
}

// write computes the figures of what has been run so far, and keeps them.
func (r *result) write() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Seconds = time.Since(r.began).Seconds()
	if n := len(r.heals); n > 0 {
		slices.Sort(r.heals)
		var sum time.Duration
		for _, h := range r.heals {
			sum += h
		}
		r.MeanHeal, r.MedianHeal = sum.Seconds()/float64(n), r.heals[n/2].Seconds()
		r.P99Heal, r.SlowestHeal = r.heals[n*99/100].Seconds(), r.heals[n-1].Seconds()
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil || *resultFile == "" {
		return err
	}
	return os.WriteFile(*resultFile, append(text, '\n'), 0o644)
}

// TestChaos is the run. Within make test it is short, and its seed is fixed; make chaos goes on for longer.
func TestChaos(t *testing.T) {
	t.Parallel()
	r := &result{Seed: *seed, Planned: *iterations, HealWithin: healWithin.Seconds(), began: time.Now(), Faults: map[string]int{}, LeftOut: []string{}, Date: time.Now().UTC().Format(time.RFC3339), Cores: runtime.NumCPU()}
	for _, k := range kinds {
		if k.needs == nil {
			continue
		}
		if err := k.needs(); err != nil {
			r.LeftOut = append(r.LeftOut, k.name)
			t.Logf("LEFT OUT: %s: %v", k.name, err)
			if os.Getenv("REQUIRE_ALL") != "" {
				t.Errorf("%s can't be had here, and everything is required: %v", k.name, err)
			}
		}
	}
	t.Cleanup(func() { // after all generations
		t.Logf("%d of %d rounds, %d failed; the slowest took %.1f s to heal", r.Iterations, r.Planned, r.Failed, r.SlowestHeal)
	})
	for g := 0; g**perStack < *iterations; g++ {
		if *generation >= 0 && g != *generation {
			continue
		}
		rounds := min(*perStack, *iterations-g**perStack)
		t.Run(fmt.Sprintf("generation %d", g), func(t *testing.T) {
			t.Parallel()
			runGeneration(t, g, rounds, r)
		})
	}
}

func runGeneration(t *testing.T, g, rounds int, r *result) {
	dir := generationDir(t, g)
	random := rand.New(rand.NewPCG(*seed, uint64(g)))
	plans := make([]plan, rounds)
	for i := range plans {
		plans[i] = drawPlan(random)
	}
	s := startStack(t, random, dir)
	a, was := &account{acked: map[uuid.UUID]bool{}}, newSeen()
	var history strings.Builder
	say := func(mu *sync.Mutex) func(string, ...any) {
		return func(format string, v ...any) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(&history, "%s  "+format+"\n", append([]any{stamp()}, v...)...)
		}
	}(&sync.Mutex{})
	for i := range plans {
		p := &plans[i]
		n := g**perStack + i
		say("iteration %d: %d events by %s in %s, %d a message, tried for %s", n, p.events, p.way, p.pace, p.perMessage, p.retryFor)
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute+*healWithin)
		err := s.round(ctx, p, a, say)
		healing := time.Now()
		var end time.Time
		if err == nil {
			end, err = s.settled(ctx, *healWithin, was)
		}
		heal := time.Since(healing)
		say("          settled after %s", heal.Round(time.Millisecond))
		if err == nil {
			err = s.check(ctx, a, end, was)
		}
		cancel()
		r.mu.Lock()
		r.Iterations++
		r.heals = append(r.heals, heal)
		for _, f := range p.faults {
			r.Faults[f.kind]++
		}
		r.mu.Unlock()
		if err != nil {
			r.mu.Lock()
			r.Failed++
			r.mu.Unlock()
			t.Errorf("seed %d, iteration %d (generation %d): %v\n%s\nEverything is in %s; again: make chaos SEED=%d ITERATIONS=%d GENERATION=%d",
				*seed, n, g, err, history.String(), dir, *seed, *iterations, g)
			break
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "history.log"), []byte(history.String()), 0o600); err != nil {
		t.Error(err)
	}
	if testing.Verbose() && !t.Failed() {
		t.Logf("\n%s", history.String())
	}
	defer func() {
		if err := r.write(); err != nil {
			t.Error(err)
		}
	}()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Published += len(a.acked)
	r.Acked += a.n
	if rows, err := s.rows(t.Context()); err == nil {
		r.Stored += len(rows)
	}
	r.Archives += len(was.files)
	r.Links += was.links
	r.Mailed += len(was.mailed)
	for _, id := range slices.Sorted(maps.Keys(was.mailed)) {
		r.MailedTwice += was.mailed[id] - 1
	}
}

// generationDir is removed if all went well.
func generationDir(t *testing.T, g int) string {
	t.Helper()
	dir, err := os.MkdirTemp(*under, fmt.Sprintf("kansa-chaos-%d-%d-", *seed, g)) //nolint:usetesting // it stays if the test fails
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() && !*keepAll {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}
