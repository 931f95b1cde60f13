package pipeline

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
)

// publishers lets the holder of a publisher's key publish for its organization, and, if anonymous is set, programs on this machine
// without a key for all.
type publishers struct {
	store     *access.Store
	anonymous bool
	local     gateway.Loopback

	mu    sync.Mutex
	known map[[sha256.Size]byte]publisher
}

const (
	// keyFor is how long a key is believed: one that is revoked works for this long still.
	keyFor = 5 * time.Second
	// mostKeys bounds what is remembered.
	mostKeys = 10_000
)

type publisher struct {
	access.Principal
	until time.Time
}

func (p publisher) Name() string { return "key:" + p.ID }

func (p publisher) MayPublish(organization string, _ schema.Trail) error {
	return p.May(access.Publisher, organization)
}

// Authenticate is a gateway.Access.
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
	sum, now := sha256.Sum256([]byte(secret)), time.Now()
	k.mu.Lock()
	p, ok := k.known[sum]
	k.mu.Unlock()
	if ok && now.Before(p.until) {
		return p, nil
	}
	who, err := k.store.ByKey(r.Context(), secret)
	if errors.Is(err, access.ErrUnknown) {
		return nil, fmt.Errorf("%w: the key is not known, or has expired", gateway.ErrUnauthenticated)
	}
	if err != nil {
		return nil, fmt.Errorf("the key can't be looked up at the moment: %w", err)
	}
	p = publisher{*who, now.Add(keyFor)}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.known == nil || len(k.known) >= mostKeys {
		k.known = map[[sha256.Size]byte]publisher{}
	}
	k.known[sum] = p
	return p, nil
}
