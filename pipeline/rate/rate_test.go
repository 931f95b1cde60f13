package rate

import (
	"fmt"
	"testing"
	"time"
)

// So many at once, then so many in a time; everybody for himself, and the first refusal in a row is told.
func TestRate(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	r := New(10, time.Minute, 10, func() time.Time { return now })
	for n := range 10 {
		if wait, _ := r.Take("a"); wait != 0 {
			t.Fatalf("number %d has to wait %s", n, wait)
		}
	}
	if wait, first := r.Take("a"); wait != 6*time.Second || !first {
		t.Errorf("one too many: %s, %t", wait, first)
	}
	if wait, first := r.Take("a"); wait != 6*time.Second || first {
		t.Errorf("another: %s, %t", wait, first)
	}
	if wait, _ := r.Take("b"); wait != 0 {
		t.Errorf("somebody else waits %s", wait)
	}
	now = now.Add(6 * time.Second)
	if wait, _ := r.Take("a"); wait != 0 {
		t.Errorf("after its time: %s", wait)
	}
	if wait, first := r.Take("a"); wait == 0 || !first {
		t.Errorf("the next: %s, %t", wait, first)
	}
	// Who is long gone takes no memory.
	for n := range 5000 {
		now = now.Add(time.Second)
		r.Take(fmt.Sprint(n))
	}
	if n := len(r.of); n > 1200 {
		t.Errorf("%d are remembered", n)
	}
	if wait, _ := New(0, time.Second, 0, nil).Take("a"); wait != 0 {
		t.Errorf("no bound: %s", wait)
	}
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	for ip, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64", "::ffff:192.0.2.1": "::ffff:192.0.2.1", "": "",
	} {
		if got := Network(ip); got != want {
			t.Errorf("%s: %s, want %s", ip, got, want)
		}
	}
}

// Each bound of slots holds by itself, and what is given back can be taken again.
func TestSlotsHaveThreeBounds(t *testing.T) {
	t.Parallel()
	s := NewSlots(2, 3, 4)
	take := func(holder, group, want string) func() {
		t.Helper()
		release, reached := s.Take(holder, group)
		if reached != want || (release == nil) != (want != "") {
			t.Errorf("%s of %s: %q, want %q", holder, group, reached, want)
		}
		return release
	}
	one := take("a", "acme", "")
	take("a", "acme", "")
	take("a", "acme", "each")
	take("b", "acme", "")
	take("b", "acme", "organization")
	take("c", "globex", "")
	take("d", "globex", "all")
	one()
	one() // once is enough
	take("d", "globex", "")
	take("e", "globex", "all")
}

// An attempt that is taken back does not count.
func TestReturnedAttemptDoesNotCount(t *testing.T) {
	t.Parallel()
	now := time.Now()
	r := New(2, time.Minute, 2, func() time.Time { return now })
	for range 10 {
		if wait, _ := r.Take("a"); wait > 0 {
			t.Fatal(wait)
		}
		r.Return("a")
	}
}
