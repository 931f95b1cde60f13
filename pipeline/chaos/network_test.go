//go:build linux

package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// network has a proxy for each pair that talks to each other.
type network struct {
	server *toxiproxy.ApiServer
	links  map[string]*toxiproxy.Proxy
}

func newNetwork() *network {
	zerolog.SetGlobalLevel(zerolog.Disabled) // toxics log by themselves
	return &network{toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), map[string]*toxiproxy.Proxy{}}
}

// add makes a proxy to an address and returns its own.
func (n *network) add(name, upstream string) (string, error) {
	p := toxiproxy.NewProxy(n.server, name, "127.0.0.1:0", upstream)
	if err := p.Start(); err != nil {
		return "", fmt.Errorf("start the proxy %s: %w", name, err)
	}
	n.links[name] = p
	return p.Listen, nil
}

// toxic is what happens on a link, in toxiproxy's own words.
type toxic struct {
	Type       string         `json:"type"`
	Stream     string         `json:"stream"`
	Attributes map[string]any `json:"attributes"`
}

// troubles of links, by the words that people would use for them.
var troubles = []struct {
	name string
	draw func(r *rand.Rand) []toxic
}{
	{"reset", func(*rand.Rand) []toxic {
		return []toxic{{"reset_peer", "upstream", map[string]any{"timeout": 0}}, {"reset_peer", "downstream", map[string]any{"timeout": 0}}}
	}},
	{"delay", func(r *rand.Rand) []toxic {
		ms := 50 + r.IntN(700)
		return []toxic{
			{"latency", "upstream", map[string]any{"latency": ms, "jitter": ms / 3}},
			{"latency", "downstream", map[string]any{"latency": ms, "jitter": ms / 3}},
		}
	}},
	{"hole", func(*rand.Rand) []toxic {
		return []toxic{{"timeout", "upstream", map[string]any{"timeout": 0}}, {"timeout", "downstream", map[string]any{"timeout": 0}}}
	}},
	// The request arrives and is carried out; the answer is lost, and after a while the connection.
	{"lost answers", func(r *rand.Rand) []toxic {
		return []toxic{{"timeout", "downstream", map[string]any{"timeout": 50 + r.IntN(1500)}}}
	}},
	{"answers cut", func(r *rand.Rand) []toxic {
		return []toxic{{"limit_data", "downstream", map[string]any{"bytes": r.IntN(2000)}}}
	}},
	{"requests cut", func(r *rand.Rand) []toxic {
		return []toxic{{"limit_data", "upstream", map[string]any{"bytes": r.IntN(200_000)}}}
	}},
	{"slow", func(r *rand.Rand) []toxic {
		return []toxic{{"bandwidth", "upstream", map[string]any{"rate": 5 + r.IntN(200)}}}
	}},
}

// poison puts toxics on a link.
func (n *network) poison(link string, toxics []toxic) error {
	for _, t := range toxics {
		body, err := json.Marshal(t)
		if err != nil {
			return err
		}
		// One that is there already, from another fault of the round, stays.
		if _, err := n.links[link].Toxics.AddToxicJson(strings.NewReader(string(body))); err != nil && err.Error() != toxiproxy.ErrToxicAlreadyExists.Error() {
			return fmt.Errorf("poison %s with %s: %w", link, body, err)
		}
	}
	return nil
}

// heal takes a link's toxics away.
func (n *network) heal(link string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	n.links[link].Toxics.ResetToxics(ctx)
}

// lead has a link end at another address.
func (n *network) lead(link, upstream string) error {
	p := n.links[link]
	if p.Upstream == upstream {
		return nil
	}
	return p.Update(&toxiproxy.Proxy{Listen: p.Listen, Upstream: upstream, Enabled: true})
}

// cut ends a link's connections, and refuses new ones until it is mended.
func (n *network) cut(link string) { n.links[link].Stop() }

func (n *network) mend(link string) error { return n.links[link].Start() }

func (n *network) close() {
	for _, p := range n.links {
		p.Stop()
	}
}
