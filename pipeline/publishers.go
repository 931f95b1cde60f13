package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
)

// publishers lets the holder of a publisher's key publish for its organization, and, if anonymous is set, programs on this machine
// without a key for all.
type publishers struct {
	watch     *access.Watch
	anonymous bool
	local     gateway.Loopback
}

// publisher is who publishes, as long as the key holds: see publishing.
type publisher struct {
	access.Principal
	held context.Context
}

func (p publisher) Name() string { return "key:" + p.ID }

// Mapping implements gateway.MappedClient.
func (p publisher) Mapping() string { return p.Principal.Mapping }

// Organization implements gateway.MappedClient.
func (p publisher) Organization() string { return p.Principal.Organization }

func (p publisher) MayPublish(organization string, _ schema.Trail) error {
	if errors.Is(context.Cause(p.held), access.ErrEnded) {
		return access.ErrEnded
	}
	return p.May(access.Publisher, organization)
}

type requestKey struct{}

// leaving is what a request leaves behind when it ends.
type leaving struct{ leave func() }

// publishing has the hold on a request's key end with the request.
func publishing(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l := &leaving{}
		defer func() {
			if l.leave != nil {
				l.leave()
			}
		}()
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, l)))
	})
}

// Authenticate is a gateway.Access. A key that is revoked while a request is under way publishes nothing more.
func (k *publishers) Authenticate(r *http.Request) (gateway.Client, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		if k.anonymous {
			return k.local.Authenticate(r)
		}
		return nil, fmt.Errorf("%w: there is no key: send the key of a publisher as Authorization: Bearer kansa_…; kansa apikey add makes one", gateway.ErrUnauthenticated)
	}
	secret, ok := strings.CutPrefix(header, "Bearer ")
	if !ok {
		return nil, fmt.Errorf("%w: give the key as Authorization: Bearer kansa_…", gateway.ErrUnauthenticated)
	}
	held, who, leave, err := k.watch.Enter(r.Context(), func(ctx context.Context) (*access.Principal, error) { return k.watch.ByKey(ctx, secret) })
	if errors.Is(err, access.ErrUnknown) {
		return nil, fmt.Errorf("%w: the key is not known, or has expired", gateway.ErrUnauthenticated)
	}
	if err != nil {
		return nil, fmt.Errorf("the key can't be looked up at the moment: %w", err)
	}
	if l, ok := r.Context().Value(requestKey{}).(*leaving); ok {
		l.leave = leave
	} else {
		leave()
		held = r.Context()
	}
	return publisher{*who, held}, nil
}
