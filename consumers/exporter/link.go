package exporter

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrNoLink is the one answer to a token that is wrong, expired or withdrawn: which, is nobody's business.
var ErrNoLink = errors.New("this link does not work or has expired")

// Links keeps download links in a key-value bucket. The token itself is never kept: only its SHA-256,
// so that who reads the bucket can download nothing.
type Links struct {
	KV  jetstream.KeyValue
	Now func() time.Time // default time.Now
}

// Link is what a token opens.
type Link struct {
	Export  string    `json:"export"`
	Expires time.Time `json:"expires"`
}

// Create makes a link and returns its token of 256 random bits.
func (l Links) Create(ctx context.Context, link Link) (token string, err error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	token = base64.RawURLEncoding.EncodeToString(secret)
	data, err := json.Marshal(link)
	if err != nil {
		return "", fmt.Errorf("encode link: %w", err)
	}
	if _, err := l.KV.Create(ctx, tokenKey(token), data); err != nil {
		return "", fmt.Errorf("keep link: %w", err)
	}
	return token, nil
}

// Open returns what a token opens, or ErrNoLink.
func (l Links) Open(ctx context.Context, token string) (Link, error) {
	entry, err := l.KV.Get(ctx, tokenKey(token))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Link{}, ErrNoLink
	}
	if err != nil {
		return Link{}, fmt.Errorf("look up link: %w", err)
	}
	var link Link
	if err := json.Unmarshal(entry.Value(), &link); err != nil {
		return Link{}, fmt.Errorf("look up link: %w", err)
	}
	now := time.Now
	if l.Now != nil {
		now = l.Now
	}
	if !now().Before(link.Expires) {
		return Link{}, ErrNoLink
	}
	return link, nil
}

func tokenKey(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// DownloadPath is the path of a link, under the public address of the API.
func DownloadPath(token, file string) string {
	return "/download/" + token + "/" + url.PathEscape(file)
}

// absolute puts a path under a base address.
func absolute(base, path string) string { return strings.TrimSuffix(base, "/") + path }
