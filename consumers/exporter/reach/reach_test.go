package reach

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestAddressesOfThisMachineAreRefused(t *testing.T) {
	t.Parallel()
	var none Policy
	for _, refused := range []string{
		"127.0.0.1", "127.8.9.10", "::1", "0.0.0.0", "::", "169.254.169.254", "fe80::1", "fe80::1%eth0", "224.0.0.1", "ff02::1", "255.255.255.255",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "::127.0.0.1",
		"fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16",
	} {
		if err := none.Check(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(refused), 22)); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", refused, err)
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		n := netip.MustParsePrefix(a.String())
		if err := none.Check(t.Context(), netip.AddrPortFrom(n.Addr(), 22)); !errors.Is(err, ErrRefused) {
			t.Errorf("%s, of an interface: %v", a, err)
		}
		some := Policy{Networks: []netip.Prefix{n.Masked()}}
		if err := some.Check(t.Context(), netip.AddrPortFrom(n.Addr(), 22)); err != nil {
			t.Errorf("%s, whose network is allowed: %v", a, err)
		}
	}
	for _, allowed := range []string{"192.0.2.7", "10.1.2.3", "2001:db8::7", "fd12::1"} {
		if err := none.Check(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(allowed), 22)); err != nil {
			t.Errorf("%s: %v", allowed, err)
		}
	}
}

func TestOnlyAllowedNetworksAreReached(t *testing.T) {
	t.Parallel()
	p := Policy{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24")}, Own: []string{"127.0.0.1:4222", "0.0.0.0:8080", "[2001:db8::1]:9000"}}
	for address, ok := range map[string]bool{
		"127.0.0.1:22": true, "192.0.2.1:22": true, "192.0.3.1:22": false, "[::1]:22": false, "127.0.0.1:4222": false, "127.0.0.2:4222": false, "127.0.0.1:8080": false,
		"[2001:db8::1]:9000": false,
	} {
		if err := p.Check(t.Context(), netip.MustParseAddrPort(address)); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
	if err := p.CheckKind(Mail); err != nil {
		t.Error(err)
	}
	p.Kinds = []string{SFTP}
	if err := p.CheckKind(Mail); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
}

// The dialer looks at the address that a name resolved to.
func TestDialerRefusesAfterResolution(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"localhost", "127.0.0.1", "::ffff:127.0.0.1", "0"} {
		conn, err := new(Policy).Dialer(time.Minute).DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
		if err == nil {
			_ = conn.Close()
		}
		if !errors.Is(err, ErrRefused) && host != "0" || err == nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	open := Policy{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	conn, err := open.Dialer(time.Minute).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
