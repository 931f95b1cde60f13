// Package recording knows which trails are switched off, for those who publish: it is told at once when a switch is
// turned, and asks nothing for each event.
//
// It never has an event left out that would be recorded. That a trail is off is believed for a second after it was
// asked for; one that is switched on is recorded from two seconds later on. Whoever can't ask publishes, and leaves it
// to the writer, which decides by the broker's clock.
package recording

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/schema"
)

const (
	// believed is how long a trail is off without asking again.
	believed = schema.RecordingDelay / 2
	// refresh is how often it is asked whether a trail is on still, in case that nobody told; look, how often it is
	// looked whose time has come.
	refresh = time.Minute
	look    = 5 * time.Second
	// patience is how long a publisher waits for an answer.
	patience = time.Second
	// Without an answer it is asked again after leastPause, and then ever later.
	leastPause, mostPause = look, 10 * time.Minute
	// mostFollowed bounds the organizations of one publisher; of others, the writer alone decides.
	mostFollowed = 10_000
)

// Follower follows the switches of the organizations it is asked about. It is safe for concurrent use.
type Follower struct {
	js     jetstream.JetStream
	nc     *nats.Conn // from the first organization on, as is
	get    string     // the subject of a question, but for the organization
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu     sync.Mutex // held to change of, and to begin a task
	closed bool
	of     atomic.Pointer[map[string]*followed]
}

// Follow returns a follower that has to be closed.
func Follow(js jetstream.JetStream) *Follower {
	f := &Follower{js: js}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.of.Store(&map[string]*followed{})
	return f
}

// keep asks again, until f is closed or the connection: when the connection was away, for then nobody told us, and now and then.
func (f *Follower) keep() {
	status := f.nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	defer f.nc.RemoveStatusListener(status)
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		again := false
		select {
		case <-f.ctx.Done():
			return
		case now, ok := <-status:
			if !ok || now == nats.CLOSED {
				return
			}
			again = true
		case <-tick.C:
		}
		for _, w := range *f.of.Load() {
			w.mu.Lock()
			if again || time.Now().After(w.again) {
				w.ask()
			}
			w.mu.Unlock()
		}
	}
}

// Close ends what goes on. Everything is on from then on.
func (f *Follower) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.tasks.Wait()
	for _, w := range *f.of.Swap(&map[string]*followed{}) {
		w.mu.Lock()
		if w.told != nil {
			_ = w.told.Unsubscribe() // it fails only when the connection is closed
		}
		w.mu.Unlock()
	}
}

// Off tells whether events of a trail are to be left out. It waits for an answer of the broker where the organization
// is a new one, or the trail is off; never for long.
func (f *Follower) Off(organization string, trail schema.Trail) bool {
	w := (*f.of.Load())[organization]
	if w == nil {
		if w = f.follow(organization); w == nil {
			return false
		}
	}
	a := w.answer.Load()
	if !a.has(trail) || time.Now().Before(a.believed) {
		return a.has(trail)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if a = w.answer.Load(); a.has(trail) && !time.Now().Before(a.believed) { // nobody else has asked meanwhile
		w.ask()
		a = w.answer.Load()
	}
	return a.has(trail) && time.Now().Before(a.believed)
}

// follow begins to follow an organization, and waits for the first answer.
func (f *Follower) follow(organization string) *followed {
	f.mu.Lock()
	was := *f.of.Load()
	w := was[organization]
	if w == nil {
		if f.closed || len(was) >= mostFollowed {
			f.mu.Unlock()
			return nil
		}
		w = &followed{f: f, organization: organization, pause: leastPause}
		if len(was) == 0 {
			o := f.js.Options()
			f.nc, f.get = f.js.Conn(), schema.JetStreamAPI(o.APIPrefix, o.Domain)+"DIRECT.GET."+schema.RecordingStream+"."+schema.RecordingKeys+"."
			f.tasks.Go(f.keep)
		}
		w.mu.Lock()
		now := maps.Clone(was)
		now[organization] = w
		f.of.Store(&now)
		f.mu.Unlock()
		w.ask()
	} else {
		f.mu.Unlock()
		w.mu.Lock() // somebody asks
	}
	w.mu.Unlock()
	return w
}

// followed is an organization.
type followed struct {
	f            *Follower
	organization string
	answer       atomic.Pointer[answer] // nil if it is not known

	mu    sync.Mutex // held while somebody asks
	told  *nats.Subscription
	again time.Time // when to ask, if there is no reason to do so before
	pause time.Duration
}

// answer is what the broker said.
type answer struct {
	off      []schema.Trail
	revision uint64
	asked    time.Time // it was so then, or a little later
	believed time.Time // what is off is off until then
}

func (a *answer) has(trail schema.Trail) bool { return a != nil && slices.Contains(a.off, trail) }

// ask asks the broker. w.mu is held.
func (w *followed) ask() {
	if !w.f.nc.IsConnected() {
		w.answer.Store(nil)
		w.again = time.Time{} // as soon as it is
		return
	}
	ctx, cancel := context.WithTimeout(w.f.ctx, patience)
	defer cancel()
	a, err := w.f.question(ctx, w.organization)
	if err == nil && w.told == nil {
		// From now on we are told; what was turned before that is in a second answer.
		if w.told, err = w.f.nc.Subscribe(schema.SubjectRecording+"."+w.organization, w.hear); err == nil {
			a, err = w.f.question(ctx, w.organization)
		}
	}
	if err != nil {
		w.answer.Store(nil)
		w.again, w.pause = time.Now().Add(w.pause), min(2*w.pause, mostPause)
		return
	}
	w.answer.Store(a)
	w.again, w.pause = a.asked.Add(refresh), leastPause
}

// hear is told that a document was stored.
func (w *followed) hear(msg *nats.Msg) {
	stored, err := strconv.ParseUint(msg.Header.Get(schema.HeaderStored), 10, 64)
	if err != nil {
		return // somebody else's
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.f.ctx.Err() == nil {
		w.ask()
		// A copy of the bucket that answers may be a moment behind.
		if a := w.answer.Load(); a == nil || a.revision >= stored {
			return
		}
		select {
		case <-w.f.ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

var errAnswer = errors.New("the switches of the trails can not be read")

// question asks for the document of an organization.
func (f *Follower) question(ctx context.Context, organization string) (*answer, error) {
	asked := time.Now() // the answer is as of then, or later
	msg, err := f.nc.RequestWithContext(ctx, f.get+organization, nil)
	if err != nil {
		return nil, err
	}
	a := &answer{asked: asked, believed: asked.Add(believed)}
	stored := time.Time{}
	switch msg.Header.Get("Status") {
	case "404": // nothing was ever switched
		msg.Data = nil
	case "":
		if stored, err = time.Parse(time.RFC3339Nano, msg.Header.Get("Nats-Time-Stamp")); err != nil {
			return nil, errAnswer
		}
		if a.revision, err = strconv.ParseUint(msg.Header.Get(schema.HeaderStored), 10, 64); err != nil {
			return nil, errAnswer
		}
	default:
		return nil, errAnswer
	}
	r, err := schema.ParseRecording(msg.Data, stored)
	if err != nil {
		return nil, err
	}
	for _, trail := range schema.Trails {
		if !r.On(trail) {
			a.off = append(a.off, trail)
		}
	}
	return a, nil
}
