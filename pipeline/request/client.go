package request

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Proxies are the reverse proxies whose word on the client's address is believed. Anybody else's is ignored.
type Proxies []netip.Prefix

// ParseProxies reads addresses and networks, such as 10.0.0.7 or 10.0.0.0/8.
func ParseProxies(list []string) (Proxies, error) {
	var all Proxies
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a, addrErr := netip.ParseAddr(text)
			if addrErr != nil {
				return nil, fmt.Errorf("%q is neither an address nor a network: give 10.0.0.7 or 10.0.0.0/8", text)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p.Bits() == 0 {
			return nil, fmt.Errorf("%q is everybody, who could then claim any address: give the addresses of the proxy, such as 10.0.0.7", text)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

func (p Proxies) trust(a netip.Addr) bool {
	for _, prefix := range p {
		if prefix.Contains(a) {
			return true
		}
	}
	return false
}

// Client is where a request comes from.
type Client struct {
	IP string // empty if it is not known
	// HTTPS tells that the client speaks TLS, with us or with a trusted proxy.
	HTTPS bool
	// Hosts are the names by which the client may have addressed us.
	Hosts []string
	// Proxied tells that a trusted proxy is between.
	Proxied bool
}

// Of finds the client of a request. Behind trusted proxies it is the last hop that is none of them: what is further to the left in
// X-Forwarded-For, or else in Forwarded, is the client's own claim. A proxy has to set or append to X-Forwarded-For.
func (p Proxies) Of(r *http.Request) Client {
	c := Client{HTTPS: r.TLS != nil, Hosts: []string{r.Host}}
	peer, ok := address(r.RemoteAddr)
	if !ok {
		return c
	}
	c.IP = peer.String()
	if !p.trust(peer) {
		return c
	}
	c.Proxied = true
	hops, proto := forwardedFor(r)
	for i := len(hops) - 1; i >= 0; i-- {
		hop, ok := address(hops[i])
		if !ok {
			break
		}
		if c.IP = hop.String(); !p.trust(hop) {
			break
		}
	}
	c.HTTPS = c.HTTPS || strings.EqualFold(proto, "https")
	if host := last(r.Header.Values("X-Forwarded-Host")); host != "" {
		c.Hosts = append(c.Hosts, host)
	}
	return c
}

// forwardedFor returns the hops, the nearest last, and the protocol that the nearest proxy was addressed by.
func forwardedFor(r *http.Request) (hops []string, proto string) {
	proto = last(r.Header.Values("X-Forwarded-Proto"))
	if values := r.Header.Values("X-Forwarded-For"); len(values) > 0 {
		for _, v := range values {
			hops = append(hops, strings.Split(v, ",")...)
		}
		return hops, proto
	}
	for _, v := range r.Header.Values("Forwarded") {
		for element := range strings.SplitSeq(v, ",") {
			hop := ""
			for pair := range strings.SplitSeq(element, ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
				switch value = strings.Trim(value, `"`); strings.ToLower(name) {
				case "for":
					hop = value
				case "proto":
					proto = value
				}
			}
			hops = append(hops, hop)
		}
	}
	return hops, proto
}

// last is the value that the nearest proxy wrote.
func last(values []string) string {
	if len(values) == 0 {
		return ""
	}
	all := strings.Split(values[len(values)-1], ",")
	return strings.TrimSpace(all[len(all)-1])
}

// address reads one with or without a port.
func address(text string) (netip.Addr, bool) {
	text = strings.TrimSpace(text)
	if host, _, err := net.SplitHostPort(text); err == nil {
		text = host
	}
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	return a.Unmap().WithZone(""), err == nil
}

type clientKey struct{}

// From is the client of the request that ctx belongs to.
func From(ctx context.Context) Client {
	c, _ := ctx.Value(clientKey{}).(Client)
	return c
}
