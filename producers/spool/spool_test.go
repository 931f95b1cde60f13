package spool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
)

func open(t *testing.T, dir string, max int64) *Spool {
	t.Helper()
	s, err := Open(dir, max)
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

// What was put comes back whole, in its order, after the process has ended too.
func TestMessagesOutliveTheirSpool(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	for n := range 5 {
		if err := s.Put(message(n)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(dir, 1<<20); !errors.Is(err, ErrInUse) {
		t.Errorf("a second spool on the directory: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "00000000000000000001.msg.tmp"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 1<<20)
	_, before := s.Stats()
	if err := s.Put(message(5)); err != nil {
		t.Fatal(err)
	}
	for n := range 6 {
		name, msg, err := s.Oldest()
		if err != nil || msg == nil {
			t.Fatal(n, err)
		}
		if want := message(n); msg.Subject != want.Subject || msg.Header.Get("Nats-Msg-Id") != fmt.Sprint(n) || !bytes.Equal(msg.Data, want.Data) {
			t.Errorf("number %d came back as %v", n, msg)
		}
		if err := s.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if _, msg, err := s.Oldest(); msg != nil || err != nil {
		t.Errorf("an empty spool has %v, %v", msg, err)
	}
	if n, size := s.Stats(); n != 0 || size != 0 || before == 0 {
		t.Errorf("an empty spool counts %d messages of %d bytes", n, size)
	}
}

func TestSpoolIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1500)
	if err := errors.Join(s.Put(message(1)), s.Put(message(2)), s.Put(message(3))); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(message(4)); !errors.Is(err, ErrFull) {
		t.Fatalf("got %v, want a full spool", err)
	}
	name, _, err := s.Oldest()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Remove(name), s.Put(message(4))); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// A damaged message is set aside under another name, and does not hold up the next.
func TestDamagedMessageIsSetAside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	if err := errors.Join(s.Put(message(1)), s.Put(message(2))); err != nil {
		t.Fatal(err)
	}
	name, _, err := s.Oldest()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Oldest(); !errors.Is(err, ErrDamaged) {
		t.Fatalf("got %v, want damage", err)
	}
	if _, err := os.Stat(filepath.Join(dir, name+aside)); err != nil {
		t.Error(err)
	}
	if _, msg, err := s.Oldest(); err != nil || msg.Header.Get("Nats-Msg-Id") != "2" {
		t.Errorf("the next is %v, %v", msg, err)
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
	g.Wait()
	seen := map[string]bool{}
	for {
		name, msg, err := s.Oldest()
		if err != nil {
			t.Fatal(err)
		}
		if msg == nil {
			break
		}
		seen[msg.Header.Get("Nats-Msg-Id")] = true
		if err := s.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 50 {
		t.Errorf("%d of 50 came back", len(seen))
	}
}
