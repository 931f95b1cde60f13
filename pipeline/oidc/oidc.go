// Package oidc has an OpenID provider say who somebody is: by the authorization code flow with PKCE, a nonce and a state.
//
// It knows nobody itself and begins no session: it hands on what the provider has signed.
package oidc

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

// ErrRefused means that the provider does not vouch for who wants to sign in. Any other error means that it can't be asked.
var ErrRefused = errors.New("the OpenID provider does not vouch for it")

// Config of a provider. All is required but the scopes.
type Config struct {
	Issuer       string
	ClientID     string
	ClientSecret string
	Scopes       []string // besides openid
	NameClaim    string
	GroupsClaim  string
	// Redirect is where the provider sends browsers back to.
	Redirect func() string
}

// patience bounds a question to the provider.
const patience = 15 * time.Second

// Provider is one that is asked. It is looked up when it is needed first: that it is away holds up nobody else.
type Provider struct {
	c      Config
	client *http.Client

	mu    sync.Mutex
	found *oidc.Provider
}

// New returns a provider that is asked nothing yet.
func New(c Config) *Provider {
	return &Provider{c: c, client: &http.Client{Timeout: patience}}
}

// Pending is a sign-in that has begun: what its end is held against. None of it is for others to see.
type Pending struct {
	State    string `json:"state"` // that the provider brings back
	Nonce    string `json:"nonce"` // that it signs
	Verifier string `json:"verifier"`
}

// Person is who signs in, as the provider has signed it.
type Person struct {
	Subject string // by which the provider knows him for ever
	Name    string
	Groups  []string
}

func random() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// Begin returns where the browser is sent.
func (p *Provider) Begin(ctx context.Context) (url string, pending Pending, err error) {
	o, _, err := p.find(ctx)
	if err != nil {
		return "", pending, err
	}
	pending = Pending{State: random(), Nonce: random(), Verifier: oauth2.GenerateVerifier()}
	return o.AuthCodeURL(pending.State, oidc.Nonce(pending.Nonce), oauth2.S256ChallengeOption(pending.Verifier)), pending, nil
}

// Finish exchanges the code that the browser brought back, and checks what the provider says.
func (p *Provider) Finish(ctx context.Context, pending Pending, code string) (*Person, error) {
	o, found, err := p.find(ctx)
	if err != nil {
		return nil, err
	}
	ctx = oidc.ClientContext(ctx, p.client)
	token, err := o.Exchange(ctx, code, oauth2.VerifierOption(pending.Verifier))
	var answer *oauth2.RetrieveError
	switch {
	case errors.As(err, &answer) && answer.Response.StatusCode < http.StatusInternalServerError:
		return nil, fmt.Errorf("%w: it refuses the code: %q", ErrRefused, answer.ErrorCode) // and not the answer, in which anything may be
	case errors.As(err, &answer):
		return nil, fmt.Errorf("exchange the code: status %d", answer.Response.StatusCode)
	case err != nil:
		return nil, fmt.Errorf("exchange the code: %w", err)
	}
	signed, ok := token.Extra("id_token").(string)
	if !ok {
		return nil, fmt.Errorf("%w: there is no id_token in its answer", ErrRefused)
	}
	id, err := found.Verifier(&oidc.Config{ClientID: p.c.ClientID}).Verify(ctx, signed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(pending.Nonce)) != 1 {
		return nil, fmt.Errorf("%w: the nonce is another one", ErrRefused)
	}
	var claims map[string]any
	if err := id.Claims(&claims); err != nil {
		return nil, fmt.Errorf("%w: read the claims: %w", ErrRefused, err)
	}
	name, _ := claims[p.c.NameClaim].(string)
	if name == "" || id.Subject == "" {
		return nil, fmt.Errorf("%w: the claim %s, which is to be the name, is missing in the id_token", ErrRefused, p.c.NameClaim)
	}
	return &Person{Subject: id.Subject, Name: name, Groups: texts(claims[p.c.GroupsClaim])}, nil
}

// texts are those of a claim: one, or a list.
func texts(claim any) (all []string) {
	switch c := claim.(type) {
	case string:
		return []string{c}
	case []any:
		for _, v := range c {
			if text, ok := v.(string); ok {
				all = append(all, text)
			}
		}
	}
	return all
}

func (p *Provider) find(ctx context.Context) (*oauth2.Config, *oidc.Provider, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found == nil {
		found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.c.Issuer)
		if err != nil {
			return nil, nil, fmt.Errorf("look up the OpenID provider %s: %w", p.c.Issuer, err)
		}
		p.found = found
	}
	return &oauth2.Config{
		ClientID: p.c.ClientID, ClientSecret: p.c.ClientSecret, Endpoint: p.found.Endpoint(), RedirectURL: p.c.Redirect(),
		Scopes: slices.Concat([]string{oidc.ScopeOpenID}, p.c.Scopes),
	}, p.found, nil
}
