// Package reach decides which servers an organization's deliveries may connect to.
//
// It owns the policy, which is the operator's, and the dialer that enforces it: after a name is resolved and before the connection is
// made, so that neither a name that resolves differently the second time nor a redirect passes by. It never resolves or connects
// for itself, and it does not apply to what the operator's configuration file names.
package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ErrRefused means that the policy does not allow a connection or a kind of destination.
var ErrRefused = errors.New("not allowed here")

// Kinds of destinations.
const (
	SFTP   = "sftp"
	Bucket = "bucket"
	Mail   = "mail"
)

// Policy says what deliveries may reach. The zero value allows every kind, and every address but those of this machine and its link.
type Policy struct {
	// Kinds of destinations that are allowed; all if empty.
	Kinds []string
	// Networks that are allowed. If there are any, nothing else is; a network that contains loopback or link-local addresses
	// allows those.
	Networks []netip.Prefix
	// Own are addresses of Kansa's own parts, host:port, which are refused in any case.
	Own []string
	// Resolver resolves the names in Own; default net.DefaultResolver.
	Resolver *net.Resolver
}

// CheckKind refuses a kind that is not allowed.
func (p *Policy) CheckKind(kind string) error {
	if len(p.Kinds) == 0 || slices.Contains(p.Kinds, kind) {
		return nil
	}
	return fmt.Errorf("%w: destinations of the kind %s: use %s, or ask the operator to add it to exports.allow.kinds", ErrRefused, kind, strings.Join(p.Kinds, ", "))
}

// Check refuses an address that is not allowed. The error does not repeat the address, which may be one of an internal network.
func (p *Policy) Check(ctx context.Context, to netip.AddrPort) error {
	ip := plain(to.Addr())
	if p.own(ctx, ip, to.Port()) {
		return fmt.Errorf("%w: this is an address of Kansa itself", ErrRefused)
	}
	if len(p.Networks) > 0 {
		if slices.ContainsFunc(p.Networks, func(n netip.Prefix) bool { return n.Contains(ip) }) {
			return nil
		}
		return fmt.Errorf("%w: the address is in none of the networks that the operator allows: ask for it to be added to exports.allow.networks", ErrRefused)
	}
	kind := ""
	switch {
	case ip.IsLoopback():
		kind = "a loopback address"
	case ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast() || ip.IsInterfaceLocalMulticast():
		kind = "a link-local address"
	case isLocal(ip) && !ip.IsUnspecified():
		// A server that listens on all addresses is reached through this one, as through loopback.
		kind = "an address of this machine"
	case ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		kind = "not the address of one server"
	case slices.ContainsFunc(metadata, func(n netip.Prefix) bool { return n.Contains(ip) }):
		kind = "the address of a metadata service"
	default:
		return nil
	}
	return fmt.Errorf("%w: it is %s: ask the operator to add its network to exports.allow.networks", ErrRefused, kind)
}

// metadata are addresses of cloud metadata services that are not link-local.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("fd00:ec2::254/128"),  // AWS over IPv6
	netip.MustParsePrefix("fd20:ce::254/128"),   // Google Cloud over IPv6
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure
}

// Prefixes of IPv6 that lead to an IPv4 address.
var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	sixToFour = netip.MustParsePrefix("2002::/16")    // RFC 3056
	compat    = netip.MustParsePrefix("::/96")        // RFC 4291, section 2.5.5.1, deprecated
)

// plain is the address that a connection to ip reaches in the end: the IPv4 one of addresses that hold one.
func plain(ip netip.Addr) netip.Addr {
	ip = ip.Unmap().WithZone("")
	if !ip.Is6() {
		return ip
	}
	b := ip.As16()
	switch {
	case nat64.Contains(ip), compat.Contains(ip) && !ip.IsLoopback() && !ip.IsUnspecified():
		return netip.AddrFrom4([4]byte(b[12:16]))
	case sixToFour.Contains(ip):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return ip
}

// own tells whether an address is one of Kansa's own parts.
func (p *Policy) own(ctx context.Context, ip netip.Addr, port uint16) bool {
	for _, address := range p.Own {
		host, ownPort, err := net.SplitHostPort(address)
		if err != nil || ownPort != fmt.Sprint(port) {
			continue
		}
		own, err := netip.ParseAddr(host)
		if host == "localhost" || err == nil && (own.IsUnspecified() || own.Unmap().IsLoopback()) || host == "" {
			if isLocal(ip) {
				return true
			}
			continue
		}
		if err == nil {
			if plain(own) == ip {
				return true
			}
			continue
		}
		resolver := p.Resolver
		if resolver == nil {
			resolver = net.DefaultResolver
		}
		all, err := resolver.LookupNetIP(ctx, "ip", host)
		if err == nil && slices.ContainsFunc(all, func(a netip.Addr) bool { return plain(a) == ip }) {
			return true
		}
	}
	return false
}

// isLocal tells whether an address is one of this machine's.
func isLocal(ip netip.Addr) bool {
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return true // better refused
	}
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Unmap() == ip {
			return true
		}
	}
	return false
}

// Dialer connects to what the policy allows. A refusal answers to [ErrRefused].
func (p *Policy) Dialer(timeout time.Duration) *net.Dialer {
	return &net.Dialer{Timeout: timeout, ControlContext: func(ctx context.Context, network, address string, _ syscall.RawConn) error {
		if !strings.HasPrefix(network, "tcp") {
			return fmt.Errorf("%w: connections other than TCP", ErrRefused)
		}
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
		return p.Check(ctx, to)
	}}
}
