package spool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

func open(t testing.TB, dir string, limit int64) *Spool {
	t.Helper()
	s, err := Open(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func message(n int) *nats.Msg {
	return &nats.Msg{
		Subject: "audit.events.acme.activity", Header: nats.Header{"Nats-Msg-Id": {fmt.Sprint(n)}, "Content-Type": {"x"}},
		Data: bytes.Repeat([]byte{byte(n), '\n', 0}, 100),
	}
}

// take returns the id of the oldest message, and removes it.
func (s *Spool) take(t *testing.T) string {
	t.Helper()
	names := s.Oldest(1)
	if len(names) == 0 {
		return ""
	}
	msg, err := s.Read(names[0])
	if err == nil {
		err = s.Remove(names[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	return msg.Header.Get("Nats-Msg-Id")
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// What was put comes back whole, in its order, after the process has ended too; what was being written when it
// ended is gone.
func TestMessagesOutliveTheirSpool(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "of", "an application")
	s := open(t, dir, 1<<20)
	if closed(s.Ready()) || !closed(s.Empty()) {
		t.Error("a new spool is not empty")
	}
	for n := range 5 {
		if err := s.Put(message(n)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(dir, 1<<20); !errors.Is(err, ErrInUse) {
		t.Errorf("a second spool on the directory: %v", err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	torn := filepath.Join(dir, "00000000000000000001.msg.tmp")
	if err := os.WriteFile(torn, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 1<<20)
	if _, err := os.Stat(torn); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was half written is there: %v", err)
	}
	if !closed(s.Ready()) || closed(s.Empty()) {
		t.Error("a spool with messages is empty")
	}
	if err := s.Put(message(5)); err != nil {
		t.Fatal(err)
	}
	for n, name := range s.Oldest(100) {
		msg, err := s.Read(name)
		if err != nil {
			t.Fatal(n, err)
		}
		if want := message(n); msg.Subject != want.Subject || msg.Header.Get("Nats-Msg-Id") != fmt.Sprint(n) || !bytes.Equal(msg.Data, want.Data) {
			t.Errorf("number %d came back as %v", n, msg)
		}
		if err := s.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if n, size := s.Stats(); n != 0 || size != 0 || closed(s.Ready()) || !closed(s.Empty()) {
		t.Errorf("an empty spool counts %d messages of %d bytes", n, size)
	}
}

func TestSpoolIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1600)
	if err := errors.Join(s.Put(message(1)), s.Put(message(2)), s.Put(message(3))); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(message(4)); !errors.Is(err, ErrFull) {
		t.Fatalf("got %v, want a full spool", err)
	}
	s.take(t)
	if err := s.Put(message(4)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// A message goes behind the others when it is postponed.
func TestPostponed(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<20)
	if err := errors.Join(s.Put(message(1)), s.Put(message(2))); err != nil {
		t.Fatal(err)
	}
	s.Postpone(s.Oldest(1)[0])
	if err := s.Put(message(3)); err != nil {
		t.Fatal(err)
	}
	if got := s.take(t) + s.take(t) + s.take(t) + s.take(t); got != "213" {
		t.Errorf("they came as %s", got)
	}
}

// A damaged message is set aside under another name, where it takes room, and does not hold up the next.
func TestDamagedMessageIsSetAside(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(data []byte) []byte{
		"data":      func(d []byte) []byte { d[len(d)-1] ^= 1; return d },
		"subject":   func(d []byte) []byte { return bytes.Replace(d, []byte("acme"), []byte("evil"), 1) },
		"cut off":   func(d []byte) []byte { return d[:len(d)/2] },
		"empty":     func([]byte) []byte { return nil },
		"other":     func([]byte) []byte { return []byte("{}\n") },
		"longer":    func(d []byte) []byte { return append(d, 0) },
		"too large": func(d []byte) []byte { return append(d, make([]byte, maxFile)...) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := open(t, dir, 1<<20)
			if err := errors.Join(s.Put(message(1)), s.Put(message(2)), s.Put(message(3))); err != nil {
				t.Fatal(err)
			}
			middle := s.Oldest(2)[1]
			path := filepath.Join(dir, middle)
			data, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, damage(data), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Read(middle); !errors.Is(err, ErrDamaged) {
				t.Fatalf("got %v, want damage", err)
			}
			if _, err := os.Stat(path + aside); err != nil {
				t.Error(err)
			}
			if got := s.take(t) + s.take(t) + s.take(t); got != "13" {
				t.Errorf("the others came as %s", got)
			}
			if n, size := s.Stats(); n != 0 || size == 0 {
				t.Errorf("%d messages, %d bytes; what is set aside takes room", n, size)
			}
		})
	}
}

// Somebody who removes a file takes its message away, and nothing else.
func TestRemovedByHand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	if err := errors.Join(s.Put(message(1)), s.Put(message(2))); err != nil {
		t.Fatal(err)
	}
	name := s.Oldest(1)[0]
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(name); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
	if got := s.take(t); got != "2" {
		t.Errorf("the next is %s", got)
	}
}

func TestConcurrentPuts(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<20)
	var g sync.WaitGroup
	for n := range 50 {
		g.Go(func() {
			if err := s.Put(message(n)); err != nil {
				t.Error(err)
			}
		})
	}
	await.Return(t, await.Limit, "all messages to be spooled", g.Wait)
	seen := map[string]bool{}
	for id := s.take(t); id != ""; id = s.take(t) {
		seen[id] = true
	}
	if len(seen) != 50 {
		t.Errorf("%d of 50 came back", len(seen))
	}
}

// What is written is read again, byte for byte; and with any byte of it changed, it is damaged.
func FuzzDecode(f *testing.F) {
	f.Add("audit.events.acme.activity", "id", []byte("data\nof two lines"), 3, byte(1))
	f.Add("", "", []byte{}, 90, byte('\n'))
	f.Fuzz(func(t *testing.T, subject, id string, data []byte, at int, change byte) {
		_, _ = decode(data) // whatever it is
		if !utf8.ValidString(subject) || !utf8.ValidString(id) {
			return // neither is one of ours
		}
		msg := &nats.Msg{Subject: subject, Header: nats.Header{"Nats-Msg-Id": {id}}, Data: data}
		head, err := encodeHead(msg)
		if err != nil {
			t.Fatal(err)
		}
		file := append(head, data...)
		got, err := decode(bytes.Clone(file))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Data, data) {
			t.Errorf("data %q came back as %q", data, got.Data)
		}
		if again, err := encodeHead(got); err != nil || !bytes.Equal(again, head) {
			t.Errorf("%q came back as %q, %v", head, again, err)
		}
		if change == 0 {
			return
		}
		file[uint(at)%uint(len(file))] ^= change
		if _, err := decode(file); !errors.Is(err, ErrDamaged) {
			t.Errorf("with byte %d changed: %v", uint(at)%uint(len(file)), err)
		}
	})
}
