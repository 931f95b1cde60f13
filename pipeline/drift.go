package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/schema"
)

// drift notices that streams and consumers are changed from outside. Settings of consumers are restored: that loses nothing. Those of streams
// are reported only, for to restore them may remove messages, as with a shorter max_age.
type drift struct {
	client *broker.Client
	record func(ctx context.Context, e schema.Event)
	log    *slog.Logger

	mu       sync.Mutex
	changes  []broker.Change
	err      error
	restored []restored
	reported map[string]bool // of streams
}

// restored is a consumer that was changed and has its settings again.
type restored struct {
	change broker.Change
	at     time.Time
}

const (
	driftEvery = 10 * time.Second
	// restoredFor is how long it is reported that a consumer had been changed.
	restoredFor = 10 * time.Minute
)

// run looks until ctx ends.
func (d *drift) run(ctx context.Context) {
	tick := time.NewTicker(driftEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.look(ctx)
		}
	}
}

func (d *drift) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, driftEvery)
	defer cancel()
	changes, err := d.client.Changes(ctx)
	var left []broker.Change
	var done []restored
	for _, c := range changes {
		if c.Consumer == "" || c.Configured {
			left = append(left, c)
			continue
		}
		if resetErr := d.client.ResetConsumer(ctx, c.Consumer); resetErr != nil {
			d.log.Error("a consumer was changed from outside and its settings could not be restored; trying again", slog.String("change", c.String()), slog.Any("error", resetErr))
			left = append(left, c)
			continue
		}
		d.log.Warn("a consumer was changed from outside; its settings are restored", slog.String("change", c.String()))
		d.event(ctx, "consumer.changed", c, "; it was changed from outside and is restored")
		done = append(done, restored{c, time.Now()})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
	if err != nil {
		return
	}
	d.changes = left
	for _, r := range d.restored {
		if time.Since(r.at) < restoredFor {
			done = append(done, r)
		}
	}
	d.restored = done
	now := map[string]bool{}
	for _, c := range left {
		if c.Consumer != "" {
			continue
		}
		if now[c.String()] = true; !d.reported[c.String()] {
			d.log.Error("a stream was changed from outside", slog.String("change", c.String()))
			d.event(ctx, "stream.changed", c, "; it was changed from outside")
		}
	}
	d.reported = now
}

func (d *drift) event(ctx context.Context, code string, c broker.Change, what string) {
	id := c.Stream
	if c.Consumer != "" {
		id += "/" + c.Consumer
	}
	d.record(ctx, schema.Event{
		Event: code, Action: "update", Outcome: schema.Success, Actor: schema.Actor{Type: "unknown", ID: "unknown"},
		Target: schema.Target{Type: strings.TrimSuffix(code, ".changed"), ID: id}, Description: c.String() + what,
	})
}

// streamsAreWell is a check: what stops Kansa's streams from doing what they should.
func (d *drift) streamsAreWell(context.Context) error { return d.streams(true) }

// settingsAreOurs is a check: what else was changed of the streams.
func (d *drift) settingsAreOurs(context.Context) error { return d.streams(false) }

func (d *drift) streams(breaks bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, c := range d.changes {
		if c.Consumer == "" && c.Breaks() == breaks {
			errs = append(errs, fmt.Errorf("%s", c))
		}
	}
	return health.Do(errors.Join(errs...), "kansa repair --streams restores what this process set up; if it was changed on purpose, change the configuration and restart")
}

// consumersAreWell is a check: which consumers were changed.
func (d *drift) consumersAreWell(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, c := range d.changes {
		switch {
		case c.Consumer == "":
		case c.Configured:
			errs = append(errs, health.Do(fmt.Errorf("%s: another process of Kansa has another configuration", c), "give all processes the same configuration, and restart them"))
		default:
			errs = append(errs, health.Do(fmt.Errorf("%s: it was changed from outside and is restored within %s", c, driftEvery), "find out who changed it; who may use the broker is in deploy/nats/accounts.conf"))
		}
	}
	for _, r := range d.restored {
		errs = append(errs, health.Do(fmt.Errorf("%s: it was changed from outside and was restored at %s", r.change, r.at.UTC().Format(time.RFC3339)),
			"find out who changed it; kansa repair says whether messages were not stored meanwhile, and --fix stores them"))
	}
	return errors.Join(errs...)
}

// keepTicking has the rollup notified when hours end, even if its schedule or a tick is lost, until ctx ends.
func (s *System) keepTicking(ctx context.Context, progress *rollup.Progress) {
	tick := time.NewTicker(driftEvery)
	defer tick.Stop()
	hour := s.Config.Rollup.Hour
	for idle := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		restored, err := s.Client.KeepTicking(ctx, hour)
		if err == nil && restored {
			s.log.Warn("the schedule of the rollup's ticks was gone; it is restored")
		}
		// An hour is due and no tick asks for it.
		var next time.Time
		if err == nil {
			next, err = progress.Next(ctx)
		}
		none := false
		if err == nil && time.Since(next) > hour+driftEvery {
			none, err = s.Client.Idle(ctx)
		}
		if idle++; !none {
			idle = 0
		}
		if err == nil && idle >= 2 {
			err = s.Client.Tick(ctx)
			idle = 0
		}
		if err != nil && ctx.Err() == nil {
			s.log.Debug("it is not known whether the rollup's ticks come", slog.Any("error", err)) // a check reports why
		}
	}
}

// watchEvery is how often the ledger is held against the stream while hours are under way.
const watchEvery = 10 * time.Second

// watchLedger finds messages that were acknowledged and not stored as soon as that is so, until ctx ends.
func (s *System) watchLedger(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var watched rollup.Watched
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		open, err := s.Rollup.Watch(ctx, &watched)
		if err != nil {
			continue // the rollup meets the same error, and a check reports it
		}
		s.unaccounted.Store(open)
	}
}

// open is what watchLedger found last.
func (s *System) open() *rollup.Open {
	if o := s.unaccounted.Load(); o != nil {
		return o
	}
	return &rollup.Open{}
}
