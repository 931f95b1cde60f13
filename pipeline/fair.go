package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
)

// fair is the share of each organization and of each credential in what this process takes in, over HTTP and NATS together. A
// message that is allowed may exceed what is left; the next one has to wait for longer. It is a gateway.Limits.
type fair struct {
	bytesOf, eventsOf map[string]*rate.Limiter // by what is counted: organization or credential
	newOrganizations  *rate.Limiter            // by credential
	prompt            *rate.Limiter            // by organization
	pressure          *pressure
	known             func(context.Context) ([]string, error)
	log               *slog.Logger
	refused           *rate.Refused

	key *config.Limits // of one credential

	mu        sync.Mutex
	shutUntil map[string]time.Time // credentials that may not connect to the broker
	seen      map[string]bool      // organizations that have published
	asked     time.Time            // when known was called last
}

// Publishers over NATS can send more than the relay can refuse, and hold up what others publish. A credential that sends twice its
// burst within floodWindow, which one that heeds refusals does not, loses its connections and may not connect for floodPause.
const (
	floodWindow = time.Second
	floodLook   = 200 * time.Millisecond
	floodPause  = 10 * time.Second
	// floodMessages in a window are more than the stream takes, even if they are empty.
	floodMessages = 20_000
)

const (
	byOrganization = "organization"
	byCredential   = "credential"

	// leastPrompt is what a message counts as in its organization's prompt share at least: each costs the broker and the writer something.
	leastPrompt = 8 << 10

	// burst is how many seconds' worth may come at once.
	burst = 4
	// askAgain is how long to wait before the known organizations are listed again, and askFor how long that may take.
	askAgain = 5 * time.Second
	askFor   = 2 * time.Second
)

func newFair(c *config.Limits, known func(context.Context) ([]string, error), log *slog.Logger) *fair {
	per := func(n int64) *rate.Limiter { return rate.New(int(n), time.Second, burst*int(n), time.Now) }
	return &fair{
		bytesOf:          map[string]*rate.Limiter{byOrganization: per(c.OrganizationBytesPerSecond), byCredential: per(c.KeyBytesPerSecond)},
		eventsOf:         map[string]*rate.Limiter{byOrganization: per(c.OrganizationEventsPerSecond), byCredential: per(c.KeyEventsPerSecond)},
		pressure:         newPressure(time.Now),
		prompt:           rate.New(int(c.PromptBytesPerSecond), time.Second, int(c.PromptBytesPerSecond), time.Now),
		newOrganizations: rate.New(int(c.NewOrganizationsPerDay), 24*time.Hour, int(c.NewOrganizationsPerDay), time.Now),
		known:            known, log: log, seen: map[string]bool{schema.SystemOrganization: true}, shutUntil: map[string]time.Time{}, key: c,
	}
}

// Wait implements gateway.Limits.
func (f *fair) Wait(credential string) time.Duration { return f.wait(byCredential, credential) }

func (f *fair) wait(by, name string) time.Duration {
	wait := max(f.bytesOf[by].Wait(name), f.eventsOf[by].Wait(name))
	if wait > 0 {
		f.refused.Add("publish_" + by)
	}
	return wait
}

// Allow implements gateway.Limits.
func (f *fair) Allow(credential, organization string) error {
	if wait := f.wait(byOrganization, organization); wait > 0 {
		return limited(wait, "organization %s publishes faster than its limit: publish again in %s", organization, wait.Round(time.Millisecond))
	}
	if wait := f.pressure.wait(organization); wait > 0 && f.prompt.Wait(organization) > 0 {
		f.refused.Add("publish_pressure")
		return limited(wait, "this machine is busy, and organization %s publishes more than its prompt share (limits.prompt_bytes_per_second): publish again in %s",
			organization, wait.Round(time.Millisecond))
	}
	if !f.isNew(organization) {
		return nil
	}
	if wait, _ := f.newOrganizations.Take(credential); wait > 0 {
		f.refused.Add("new_organizations")
		return limited(wait, "organization %s is new, and %s has begun to publish for as many new ones as it may in a day (limits.new_organizations_per_day): check the name, or publish again in %s",
			organization, credential, wait.Round(time.Second))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[organization] = true
	return nil
}

func limited(wait time.Duration, format string, a ...any) error {
	return &gateway.LimitError{Reason: fmt.Sprintf(format, a...), Wait: wait}
}

// isNew tells whether an organization has never published anything, as far as this process can find out.
func (f *fair) isNew(organization string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen[organization] {
		return false
	}
	if now := time.Now(); now.Sub(f.asked) >= askAgain {
		f.asked = now
		ctx, cancel := context.WithTimeout(context.Background(), askFor)
		defer cancel()
		names, err := f.known(ctx)
		if err != nil {
			f.log.Warn("the known organizations cannot be listed: each one counts as new until it has published", slog.Any("error", err))
		}
		for _, name := range names {
			f.seen[name] = true
		}
	}
	return !f.seen[organization]
}

// Count implements gateway.Limits.
func (f *fair) Count(credential, organization string, events, bytes int) {
	for by, name := range map[string]string{byCredential: credential, byOrganization: organization} {
		f.bytesOf[by].TakeN(name, bytes)
		f.eventsOf[by].TakeN(name, events)
	}
	f.pressure.count(organization, bytes, f.prompt.Wait(organization) > 0)
}

// bulk tells whether a message goes into the bulk lane of the stream: its organization publishes faster than its prompt share.
func (f *fair) bulk(organization string, bytes int) bool {
	wait, _ := f.prompt.TakeN(organization, max(bytes, leastPrompt))
	return wait > 0
}

// message is the Limit of the relay, which does not know how many events a message has. It counts as one event at least, so that
// empty messages are limited, too.
func (f *fair) message(organization, credential string, bytes int) error {
	if wait := f.Wait(credential); wait > 0 {
		return fmt.Errorf("%s publishes faster than its limit: publish again in %s", credential, wait.Round(time.Millisecond))
	}
	if err := f.Allow(credential, organization); err != nil {
		return err
	}
	f.Count(credential, organization, 1, bytes)
	return nil
}

// traffic is the part of the embedded broker that floods are found by.
type traffic interface {
	Traffic() (map[uint64]broker.Traffic, error)
	LogOut(ended func(name string) bool) error
}

// follow ends the connections of credentials that flood the broker, until ctx ends.
func (f *fair) follow(ctx context.Context, server traffic) {
	tick := time.NewTicker(floodLook)
	defer tick.Stop()
	var last map[uint64]broker.Traffic
	sent := map[string]*broker.Traffic{} // in this window
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, err := server.Traffic()
		if err != nil {
			f.log.Warn("floods are not looked for", slog.Any("error", err))
			continue
		}
		if time.Since(began) >= floodWindow {
			began = time.Now()
			clear(sent)
		}
		for id, t := range now {
			if sent[t.Name] == nil {
				sent[t.Name] = &broker.Traffic{}
			}
			sent[t.Name].Bytes += t.Bytes - last[id].Bytes
			sent[t.Name].Messages += t.Messages - last[id].Messages
		}
		last = now
		for name, s := range sent {
			if f.key.KeyBytesPerSecond > 0 && s.Bytes > 2*burst*f.key.KeyBytesPerSecond || f.key.KeyEventsPerSecond > 0 && s.Messages > min(floodMessages, 2*burst*f.key.KeyEventsPerSecond) {
				f.cut(server, name)
				delete(sent, name)
			}
		}
	}
}

func (f *fair) cut(server traffic, credential string) {
	f.mu.Lock()
	maps.DeleteFunc(f.shutUntil, func(_ string, until time.Time) bool { return time.Now().After(until) })
	f.shutUntil[credential] = time.Now().Add(floodPause)
	f.mu.Unlock()
	f.refused.Add("flood")
	f.log.Warn("a publisher sends far more than its limit: its connections to the broker are closed, and it may connect again after a while",
		slog.String("credential", credential), slog.Duration("after", floodPause))
	if err := server.LogOut(func(name string) bool { return name == credential }); err != nil {
		f.log.Warn("connections of a publisher were not closed", slog.String("credential", credential), slog.Any("error", err))
	}
}

// shut is how long a credential may not connect to the broker.
func (f *fair) shut(credential string) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(0, time.Until(f.shutUntil[credential]))
}
