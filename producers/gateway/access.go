package gateway

import (
	"errors"
	"net"
	"net/http"

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
	// Name tells clients apart: limits and idempotency keys are each client's own.
	Name() string
	// MayPublish returns nil if the client may publish for an organization on a trail.
	MayPublish(organization string, trail schema.Trail) error
}

// Loopback lets programs on this machine publish for every organization, and nobody else. It refuses
// browsers and requests that came through a proxy: those speak for others, who may be anywhere.
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

func (local) Name() string                          { return "local" }
func (local) MayPublish(string, schema.Trail) error { return nil }
