package tally

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kansa-audit/kansa/schema"
)

func some() []Tally {
	at := time.Date(2026, 11, 22, 4, 5, 6, 789012000, time.UTC)
	return []Tally{
		{StreamSeq: 7, RecordedAt: at, Organization: "acme", Trail: schema.Activity, Rows: 5000, Sum: 1<<63 + 1},
		{StreamSeq: 8, RecordedAt: at.Add(time.Microsecond), Organization: "acme", Trail: schema.Activity, Rows: 0, Sum: 0},
		{StreamSeq: 3, RecordedAt: at.Add(-time.Hour), Organization: "globex", Trail: schema.Access, Rows: 1, Sum: 9},
		{StreamSeq: 9, RecordedAt: at},
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for n := range len(some()) + 1 {
		data := Encode(some()[:n])
		got, err := Decode(data)
		if err != nil || !cmp.Equal(got, some()[:n]) {
			t.Errorf("%d: %v %s", n, err, cmp.Diff(some()[:n], got))
		}
		for cut := range len(data) {
			if _, err := Decode(data[:cut]); !errors.Is(err, ErrMalformed) {
				t.Errorf("cut to %d of %d: %v", cut, len(data), err)
			}
		}
	}
}

func TestOnce(t *testing.T) {
	t.Parallel()
	all := append(some(), some()...)
	got := once(all)
	if len(got) != 4 || got[0].StreamSeq != 3 || got[3].StreamSeq != 9 {
		t.Errorf("got %v", got)
	}
	all = append(some(), some()...)
	all[5].Rows++
	if got = once(all); len(got) != 5 || !errors.Is(Contradicts(&got[2], &got[3]), ErrContradiction) || Contradicts(&got[0], &got[1]) != nil {
		t.Errorf("got %v", got)
	}
	// A broker that lost what it had not acknowledged has given the number to another message.
	all = append(some(), some()...)
	all[5].Rows++
	all[5].RecordedAt = all[5].RecordedAt.Add(time.Second)
	if got = once(all); len(got) != 5 || Contradicts(&got[2], &got[3]) != nil {
		t.Errorf("got %v", got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(some()))
	f.Add([]byte{version, 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		tallies, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Decode(Encode(tallies))
		if err != nil || !cmp.Equal(tallies, again) {
			t.Errorf("%v %s", err, cmp.Diff(tallies, again))
		}
	})
}
