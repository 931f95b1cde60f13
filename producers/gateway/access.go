package gateway

import (
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// ErrUnauthenticated is what [Access] answers with when who asks is not known. Any other error means that
// who asks is known and may not.
var ErrUnauthenticated = errors.New("not authenticated")

// Access is where authentication goes. It is asked before the body is read, and has to be safe for concurrent
// use. What its errors say is told to the client.
type Access interface {
	Authenticate(r *http.Request) (Client, error)
}

// Client is who sends a request.
type Client interface {
	// Name tells clients apart: limits and idempotency keys are each client's own. It is recorded with every event.
	Name() string
	// MayPublish returns nil if the client may publish for an organization on a trail.
	MayPublish(organization string, trail schema.Trail) error
}

// MappedClient is a client whose requests hold records of another system.
type MappedClient interface {
	Client
	// Mapping is the name of the mapping for requests that name none; empty for events.
	Mapping() string
	// Organization is that of mapped records if the request names none; empty if the mapping decides.
	Organization() string
}

// Limits are the shares of clients and organizations in what is published. Its methods are safe for concurrent use.
type Limits interface {
	// Wait returns how long a client has to wait before its next request, or zero.
	Wait(client string) time.Duration
	// Allow says whether a client may publish for an organization now; the error says why not. A [*LimitError] becomes a 429, any other a 403.
	Allow(client, organization string) error
	// Count counts what a client has published for an organization.
	Count(client, organization string, events, bytes int)
}

// LimitError means that a client or organization exceeds a limit, and may publish again after a while.
type LimitError struct {
	Reason string
	Wait   time.Duration
}

func (e *LimitError) Error() string { return e.Reason }

// unlimited limits nothing.
type unlimited struct{}

func (unlimited) Wait(string) time.Duration      { return 0 }
func (unlimited) Allow(string, string) error     { return nil }
func (unlimited) Count(string, string, int, int) {}

// Loopback lets programs on this machine publish for every organization without a key. It refuses browsers and requests that
// name a client behind a proxy. A proxy that does not name its clients is not recognized: use it only where none runs.
type Loopback struct{}

// Authenticate implements [Access].
func (Loopback) Authenticate(r *http.Request) (Client, error) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, errors.New("without authentication only programs on the same machine may publish: send from there")
	}
	for _, name := range []string{"Origin", "Sec-Fetch-Site", "Forwarded", "X-Forwarded-For", "X-Real-Ip"} {
		if r.Header.Get(name) != "" {
			return nil, errors.New("without authentication neither browsers nor proxies may publish: send without the header " + name)
		}
	}
	return local{}, nil
}

type local struct{}

func (local) Name() string                          { return schema.RecordedByAnonymous }
func (local) MayPublish(string, schema.Trail) error { return nil }
