package pipeline

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/kansa-audit/kansa/consumers/exporter/reach"
)

// reach is what destinations may connect to that people save: what the configuration allows, without Kansa's own parts.
func (s *System) reach() *reach.Policy {
	c := s.Config
	p := &reach.Policy{Kinds: c.Exports.Allow.Kinds}
	for _, text := range c.Exports.Allow.Networks {
		if n, err := netip.ParsePrefix(text); err == nil { // it was checked
			p.Networks = append(p.Networks, n.Masked())
		}
	}
	own := func(address string) {
		if address != "" {
			p.Own = append(p.Own, address)
		}
	}
	own(net.JoinHostPort(c.NATS.Listen, strconv.Itoa(c.NATS.Port)))
	own(c.API.Listen)
	own(c.Health.Listen)
	if c.Mail != nil {
		own(c.Mail.Address())
	}
	urls := []string{c.NATS.URL, c.NATS.MonitorURL, c.ClickHouse.URL, c.Tracing.Endpoint}
	if s.server != nil {
		urls = append(urls, s.server.URL())
	}
	if s.API != nil {
		urls = append(urls, s.API.URL())
	}
	if s.Engine != nil {
		urls = append(urls, s.Engine.URL())
	}
	for _, list := range urls {
		for text := range strings.SplitSeq(list, ",") {
			if u, err := url.Parse(strings.TrimSpace(text)); err == nil && u.Port() != "" {
				own(u.Host)
			}
		}
	}
	return p
}
