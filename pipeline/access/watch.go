package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrEnded is why a held context is done: the key was revoked or the session ended, or its time is over.
var ErrEnded = errors.New("the key was revoked, or the session has ended")

// Watch follows users, keys and sessions in one process. [Watch.Enter] holds a request or stream, which ends within a moment of its
// credential. Run keeps the watch up; while it is down, each key and session is looked up in the store.
type Watch struct {
	store *Store
	log   *slog.Logger

	// ends counts what has ended, so that an end between a look-up and a hold is not missed.
	ends atomic.Uint64

	mu      sync.Mutex
	follows bool
	is      standing
	held    map[*hold]struct{}
}

// standing is what holds at a revision of the bucket.
type standing struct {
	revision uint64
	keys     map[string]seenKey // by name
	secrets  map[string]string  // the key's name by the hash of its secret
	users    map[string]generation
	sessions map[string]bool // by hash
}

type seenKey struct {
	keptKey
	revision uint64
}

// generation is that of a user's credentials.
type generation struct {
	ID         string `json:"id"`
	Generation uint64 `json:"generation"`
}

type hold struct {
	p   Principal
	end context.CancelCauseFunc
}

// NewWatch returns one of a store, which follows once it runs.
func NewWatch(store *Store, log *slog.Logger) *Watch {
	return &Watch{store: store, log: log, held: map[*hold]struct{}{}}
}

func newStanding() standing {
	return standing{keys: map[string]seenKey{}, secrets: map[string]string{}, users: map[string]generation{}, sessions: map[string]bool{}}
}

const (
	// followAgain is the pause before the bucket is followed again, which doubles up to a limit.
	followAgain, mostFollowAgain = 50 * time.Millisecond, 2 * time.Second
	// lookEvery is how often it is compared with the bucket, and lookFor how long the bucket may take to answer.
	lookEvery, lookFor = 250 * time.Millisecond, time.Second
)

// Run follows the bucket until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	pause := followAgain
	for ctx.Err() == nil {
		began := time.Now()
		err := w.follow(ctx)
		w.mu.Lock()
		w.follows = false
		w.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > time.Minute {
			pause = followAgain
		}
		w.log.WarnContext(ctx, "following users and keys failed: each request looks them up until it works again", slog.Any("error", err), slog.Duration("again_in", pause))
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, mostFollowAgain)
	}
	return nil
}

// follow returns when the watch has broken, or is behind the bucket.
func (w *Watch) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	last, err := w.last(ctx)
	if err != nil {
		return err
	}
	updates, err := w.store.KV.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("watch the bucket: %w", err)
	}
	defer func() { _ = updates.Stop() }() // nothing depends on it any more
	looks := make(chan error, 1)
	var looking sync.WaitGroup
	looking.Go(func() { looks <- w.compare(ctx) })
	defer looking.Wait()
	defer cancel()
	fresh, loading := newStanding(), true
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-looks:
			return err
		case entry, ok := <-updates.Updates():
			switch {
			case !ok:
				return errors.New("the watch has ended")
			case entry == nil: // what there was has come
				loading = false
				w.begin(fresh, last)
			case loading:
				if _, err := fresh.apply(entry); err != nil {
					return err
				}
			default:
				if err := w.apply(entry); err != nil {
					return err
				}
			}
		}
	}
}

// last is the revision of the bucket.
func (w *Watch) last(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	status, err := w.store.KV.Status(ctx)
	if err != nil {
		return 0, fmt.Errorf("look at the bucket: %w", err)
	}
	bucket, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return 0, errors.New("look at the bucket: it has no stream")
	}
	return bucket.StreamInfo().State.LastSeq, nil
}

// compare returns an error when the watch lags behind the revision that the bucket had at the previous look.
func (w *Watch) compare(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var before uint64
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		w.mu.Lock()
		follows, seen := w.follows, w.is.revision
		w.mu.Unlock()
		if !follows {
			if time.Since(began) > 10*time.Second {
				return errors.New("the watch does not begin")
			}
			continue
		}
		if seen < before {
			return fmt.Errorf("the watch is at revision %d, the bucket was at %d", seen, before)
		}
		var err error
		if before, err = w.last(ctx); err != nil {
			return err
		}
	}
}

// begin takes over what there is, and ends what has ended meanwhile.
func (w *Watch) begin(is standing, revision uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	is.revision = max(is.revision, revision)
	w.is, w.follows = is, true
	w.endHeld(func(*Principal) bool { return true })
	w.ends.Add(1)
}

// apply takes over a change, and ends what it ends.
func (w *Watch) apply(entry jetstream.KeyValueEntry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	concerns, err := w.is.apply(entry)
	if err != nil {
		return err
	}
	if concerns != nil {
		w.endHeld(concerns)
		w.ends.Add(1)
	}
	return nil
}

// endHeld ends those holds that concerns says, and that stand no longer. The lock is held.
func (w *Watch) endHeld(concerns func(*Principal) bool) {
	for h := range w.held {
		if concerns(&h.p) && !w.is.stands(&h.p) {
			h.end(ErrEnded)
			delete(w.held, h)
		}
	}
}

// apply takes over a change and returns a test for the credentials that it concerns; nil if it ends none.
func (is *standing) apply(entry jetstream.KeyValueEntry) (concerns func(*Principal) bool, err error) {
	is.revision = max(is.revision, entry.Revision())
	there := entry.Operation() == jetstream.KeyValuePut
	kind, name, _ := strings.Cut(entry.Key(), ".")
	switch kind + "." {
	case prefixKey:
		was := is.keys[name]
		delete(is.secrets, was.Hash)
		delete(is.keys, name)
		if there {
			var k keptKey
			if err := json.Unmarshal(entry.Value(), &k); err != nil {
				return nil, fmt.Errorf("read key %s: %w", name, err)
			}
			if k.ID != "" { // one without is looked up, which gives it one
				is.keys[name], is.secrets[k.Hash] = seenKey{k, entry.Revision()}, name
			}
		}
		return func(p *Principal) bool { return p.Kind == "key" && p.ID == name }, nil
	case prefixUser:
		delete(is.users, name)
		if there {
			var g generation
			if err := json.Unmarshal(entry.Value(), &g); err != nil {
				return nil, fmt.Errorf("read user %s: %w", name, err)
			}
			is.users[name] = g
		}
		return func(p *Principal) bool { return p.Kind == "user" && p.ID == name }, nil
	case prefixSession:
		if there {
			is.sessions[name] = true
			return nil, nil
		}
		delete(is.sessions, name)
		return func(p *Principal) bool { return p.session == name }, nil
	}
	return nil, nil
}

// stands reports whether a credential is still valid. A credential made after this revision counts as valid.
func (is *standing) stands(p *Principal) bool {
	if p.session != "" && p.began <= is.revision && !is.sessions[p.session] {
		return false
	}
	switch {
	case p.revision > is.revision:
		return true
	case p.Kind == "key":
		return is.keys[p.ID].ID == p.UID
	case p.Kind == "user":
		return is.users[p.ID] == generation{p.UID, p.generation}
	}
	return true
}

// ByKey finds the owner of a secret, as [Store.ByKey] does. It queries the store only for keys that the watch does not know.
func (w *Watch) ByKey(ctx context.Context, secret string) (*Principal, error) {
	h := hash(secret)
	w.mu.Lock()
	var k seenKey
	if w.follows {
		k = w.is.keys[w.is.secrets[h]]
	}
	w.mu.Unlock()
	if k.ID == "" || k.Hash != h {
		return w.store.ByKey(ctx, secret)
	}
	p := k.principal()
	p.revision = k.revision
	if !w.store.now().Before(k.Expires) {
		return p, ErrUnknown
	}
	return p, nil
}

// BySession finds the owner of a session, as [Store.BySession] does.
func (w *Watch) BySession(ctx context.Context, token string) (*Principal, error) {
	return w.store.BySession(ctx, token)
}

// Stands reports whether a credential is still valid, as far as this process knows.
func (w *Watch) Stands(p *Principal) bool {
	if !p.Until.IsZero() && !w.store.now().Before(p.Until) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.follows || w.is.stands(p)
}

// Enter looks up a credential and returns a context that ends with it: with [ErrEnded] as its cause when the key is revoked or expires, or
// the session ends. The caller must call leave.
func (w *Watch) Enter(ctx context.Context, look func(context.Context) (*Principal, error)) (held context.Context, p *Principal, leave func(), err error) {
	for {
		seen := w.ends.Load()
		if p, err = look(ctx); err != nil {
			return nil, p, nil, err
		}
		if held, leave = w.hold(ctx, p); w.ends.Load() == seen {
			return held, p, leave, nil
		}
		leave() // something ended before the hold: it may be this
	}
}

func (w *Watch) hold(ctx context.Context, p *Principal) (context.Context, func()) {
	held, end := context.WithCancelCause(ctx)
	h := &hold{*p, end}
	w.mu.Lock()
	w.held[h] = struct{}{}
	w.mu.Unlock()
	stop := func() bool { return true }
	if !p.Until.IsZero() {
		stop = time.AfterFunc(p.Until.Sub(w.store.now()), func() { end(ErrEnded) }).Stop
	}
	return held, func() {
		stop()
		w.mu.Lock()
		delete(w.held, h)
		w.mu.Unlock()
		end(context.Canceled)
	}
}
