package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// The owner manages readers and their queries at paths of the endpoint itself. The parent uses them
// through the methods of Engine.
const (
	controlReaders  = "/control/readers"  // PUT replaces all readers
	controlQueries  = "/control/queries"  // GET lists running queries, DELETE ?query_id=…&username=… kills them
	controlFinished = "/control/finished" // GET waits for records of queries that have ended, and takes them
	controlSlots    = "/control/slots"    // GET says how slots are used
	controlPrefix   = "/control/"

	// finishedWait is how long a request for records waits.
	finishedWait = 20 * time.Second
	controlBody  = 64 << 20
)

// users knows who may ask. Only digests of passwords are kept, all of one length, so comparing them
// reveals nothing.
type users struct {
	owner    string
	password [sha256.Size]byte

	mu      sync.RWMutex
	readers map[string]*Reader
}

// check identifies the sender of a request; nil stands for the owner, who is known only to the same
// machine.
func (u *users) check(r *http.Request) (*Reader, error) {
	name, password := r.Header.Get("X-ClickHouse-User"), r.Header.Get("X-ClickHouse-Key")
	if name == "" && password == "" {
		var ok bool
		if name, password, ok = r.BasicAuth(); !ok {
			name, password = r.URL.Query().Get("user"), r.URL.Query().Get("password")
		}
	}
	if name == "" {
		name = "default"
	}
	digest := sha256.Sum256([]byte(password))
	if name == u.owner && subtle.ConstantTimeCompare(digest[:], u.password[:]) == 1 && sameMachine(r) {
		return nil, nil
	}
	u.mu.RLock()
	reader := u.readers[name]
	u.mu.RUnlock()
	if reader != nil && subtle.ConstantTimeCompare(digest[:], reader.Digest) == 1 && (reader.Until.IsZero() || time.Now().Before(reader.Until)) {
		return reader, nil
	}
	return nil, exceptionf(codeAuthenticationFailed,
		"%s: Authentication failed: password is incorrect, or there is no user with such name. (AUTHENTICATION_FAILED)", name)
}

// has reports whether a reader is still one of those that may ask.
func (u *users) has(r *Reader) bool {
	u.mu.RLock()
	defer u.mu.RUnlock()
	now := u.readers[r.Username]
	return now != nil && now.ID == r.ID && bytes.Equal(now.Digest, r.Digest)
}

func (u *users) set(readers []Reader) {
	all := make(map[string]*Reader, len(readers))
	for i := range readers {
		all[readers[i].Username] = &readers[i]
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.readers = all
}

// sameMachine reports whether a request came over loopback or from the address that it was sent to.
func sameMachine(r *http.Request) bool {
	remote := net.ParseIP(addressOf(r.RemoteAddr))
	if remote == nil {
		return false
	}
	if remote.IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.IP.Equal(remote)
}

func addressOf(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return ""
	}
	return host
}

// control answers the owner's requests about readers.
func (h *handler) control(w http.ResponseWriter, r *http.Request) {
	if reader, err := h.users.check(r); err != nil || reader != nil {
		http.Error(w, "only the owner can do this", http.StatusForbidden)
		return
	}
	var answer any
	switch r.Method + " " + r.URL.Path {
	case "PUT " + controlReaders:
		var readers []Reader
		if err := json.NewDecoder(io.LimitReader(r.Body, controlBody)).Decode(&readers); err != nil {
			http.Error(w, "read the readers: "+err.Error(), http.StatusBadRequest)
			return
		}
		h.setReaders(readers)
	case "GET " + controlQueries:
		answer = h.underWay.list()
	case "DELETE " + controlQueries:
		id, name := r.URL.Query().Get("query_id"), r.URL.Query().Get("username")
		answer = h.underWay.cancel(errKilled, func(q *RunningQuery) bool { return q.QueryID == id && (name == "" || q.Username == name) })
	case "GET " + controlFinished:
		_, _ = io.Copy(io.Discard, r.Body) // until it is read, the end of the connection is not noticed
		ctx, cancel := context.WithTimeout(r.Context(), finishedWait)
		defer cancel()
		defer context.AfterFunc(h.stopping, cancel)()
		answer = h.underWay.fetch(ctx)
	case "GET " + controlSlots:
		answer = h.slots.use()
	default:
		http.Error(w, "there is no "+r.Method+" "+r.URL.Path, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		if finished, ok := answer.([]FinishedQuery); ok {
			h.underWay.giveBack(finished)
		}
	}
}

// giveBack returns records that could not be sent.
func (u *underWay) giveBack(all []FinishedQuery) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.add(all...)
}

// setReaders replaces all readers and ends the queries of those that are gone.
func (h *handler) setReaders(readers []Reader) {
	h.users.set(readers)
	there := map[string]bool{}
	for i := range readers {
		there[readers[i].ID] = true
	}
	h.underWay.cancel(errRemoved, func(q *RunningQuery) bool { return !there[q.ReaderID] })
}

// SetReaders replaces all readers. When it returns nil, those that are gone can start nothing, and
// their queries are ending. A child that is started later has the same readers, also after an
// error.
func (e *Engine) SetReaders(ctx context.Context, readers []Reader) error {
	e.setting.Lock()
	defer e.setting.Unlock()
	e.mu.Lock()
	e.settings.Readers = readers
	e.mu.Unlock()
	return e.ask(ctx, http.MethodPut, controlReaders, readers, nil)
}

// Queries lists the readers' queries that run.
func (e *Engine) Queries(ctx context.Context) (all []RunningQuery, err error) {
	return all, e.ask(ctx, http.MethodGet, controlQueries, nil, &all)
}

// KillQuery ends the running queries that have an id, of one reader or of all, and returns how
// many.
func (e *Engine) KillQuery(ctx context.Context, id, username string) (n int, err error) {
	return n, e.ask(ctx, http.MethodDelete, controlQueries+"?"+url.Values{"query_id": {id}, "username": {username}}.Encode(), nil, &n)
}

// FinishedQueries waits for readers' queries to end and returns each once. It returns none after a
// while in which none ended. Records that the child has when it dies are lost.
func (e *Engine) FinishedQueries(ctx context.Context) (all []FinishedQuery, err error) {
	return all, e.ask(ctx, http.MethodGet, controlFinished, nil, &all)
}

// Slots says how the endpoint's slots are used, by purpose.
func (e *Engine) Slots(ctx context.Context) (all []SlotUse, err error) {
	return all, e.ask(ctx, http.MethodGet, controlSlots, nil, &all)
}

// ask sends a request of the owner to the child.
func (e *Engine) ask(ctx context.Context, method, path string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return fmt.Errorf("encode a request for the engine: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, e.URL()+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make a request for the engine: %w", err)
	}
	req.SetBasicAuth(e.creds.Username, e.creds.Password)
	res, err := e.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the engine's process: %w", errors.Unwrap(err))
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, controlBody))
	if err != nil {
		return fmt.Errorf("read the answer of the engine's process: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the engine's process: %s: %s", res.Status, bytes.TrimSpace(data))
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("read the answer of the engine's process: %w", err)
	}
	return nil
}
