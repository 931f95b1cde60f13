package request_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/kansa-audit/kansa/pipeline/request"
)

// A client's own claim about its address counts for nothing; what a trusted proxy saw does.
func TestClientAddressBehindProxies(t *testing.T) {
	t.Parallel()
	proxies, err := request.ParseProxies([]string{"10.0.0.0/8", "2001:db8::7", "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		remote string
		header map[string][]string
		want   string
		https  bool
	}{
		"no proxy":                {"192.0.2.1:80", nil, "192.0.2.1", false},
		"claim of a client":       {"192.0.2.1:80", map[string][]string{"X-Forwarded-For": {"198.51.100.9"}, "X-Forwarded-Proto": {"https"}}, "192.0.2.1", false},
		"one proxy":               {"10.1.2.3:80", map[string][]string{"X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Proto": {"https"}}, "192.0.2.1", true},
		"claim behind a proxy":    {"10.1.2.3:80", map[string][]string{"X-Forwarded-For": {"198.51.100.9, 192.0.2.1"}}, "192.0.2.1", false},
		"claim in another header": {"10.1.2.3:80", map[string][]string{"X-Forwarded-For": {"198.51.100.9", "192.0.2.1"}, "Forwarded": {"for=198.51.100.9"}}, "192.0.2.1", false},
		"two proxies":             {"127.0.0.1:80", map[string][]string{"X-Forwarded-For": {"198.51.100.9, 192.0.2.1, 10.0.0.9"}}, "192.0.2.1", false},
		"only proxies":            {"10.1.2.3:80", map[string][]string{"X-Forwarded-For": {"10.0.0.9"}}, "10.0.0.9", false},
		"nonsense":                {"10.1.2.3:80", map[string][]string{"X-Forwarded-For": {"192.0.2.1, unknown"}}, "10.1.2.3", false},
		"a port":                  {"10.1.2.3:80", map[string][]string{"X-Forwarded-For": {"192.0.2.1:4711"}}, "192.0.2.1", false},
		"IPv6":                    {"[2001:db8::7]:80", map[string][]string{"X-Forwarded-For": {"2001:db8::99"}}, "2001:db8::99", false},
		"IPv4 in IPv6":            {"[::ffff:10.0.0.1]:80", map[string][]string{"X-Forwarded-For": {"::ffff:192.0.2.1"}}, "192.0.2.1", false},
		"Forwarded":               {"10.1.2.3:80", map[string][]string{"Forwarded": {`for=198.51.100.9, for="[2001:db8::99]:4711";proto=https`}}, "2001:db8::99", true},
		"no headers":              {"10.1.2.3:80", nil, "10.1.2.3", false},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.RemoteAddr = c.remote
		for k, v := range c.header {
			r.Header[k] = v
		}
		if got := proxies.Of(r); got.IP != c.want || got.HTTPS != c.https {
			t.Errorf("%s: %+v, want %s, %v", name, got, c.want, c.https)
		}
	}
	if _, err := request.ParseProxies([]string{"proxy.example.com"}); err == nil {
		t.Error("a name is taken for an address")
	}
}

// The address is always valid, with any header.
func FuzzClientAddress(f *testing.F) {
	for _, seed := range []string{"", "192.0.2.1", "a,b", `for="[::1%eth0]:1"`, ",,,", "\x00", "[", "[]:1", "fe80::1%x"} {
		f.Add(seed, seed)
	}
	proxies := request.Proxies{netip.MustParsePrefix("127.0.0.0/8")}
	f.Fuzz(func(t *testing.T, forwardedFor, forwarded string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
		r.RemoteAddr = "127.0.0.1:80"
		if forwardedFor != "" {
			r.Header.Set("X-Forwarded-For", forwardedFor)
		}
		r.Header.Set("Forwarded", forwarded)
		if _, err := netip.ParseAddr(proxies.Of(r).IP); err != nil {
			t.Error(err)
		}
	})
}
