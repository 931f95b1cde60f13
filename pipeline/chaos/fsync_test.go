//go:build linux

package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/schema"
)

// TestAckNeverPrecedesFsync watches the system calls of a broker that is set up as every one of ours: before it
// writes the acknowledgement of a message to a socket, it has written the message to a file of the stream, and
// that file was synced in between.
func TestAckNeverPrecedesFsync(t *testing.T) {
	t.Parallel()
	port, err := brokertest.FreePort(rand.New(rand.NewPCG(uint64(os.Getpid()), 0)).IntN)
	if err != nil {
		t.Fatal(err)
	}
	end, trace := traced(t, fmt.Sprintf("%s=%s|%d", envBroker, filepath.Join(t.TempDir(), "data"), port))
	c, err := connect(t, fmt.Sprintf("nats://127.0.0.1:%d", port), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	err = c.Setup(t.Context(), broker.Settings{DuplicateWindow: 2 * time.Minute, AckWait: 30 * time.Second, Hour: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	marks := publishMarked(t, c.JS)
	end()
	w := &brokerWatcher{
		t: t, marks: marks, waiting: map[string]bool{}, written: map[string]string{}, durable: map[string]bool{}, acked: map[uint64]bool{},
		syncing: map[string][]string{},
	}
	for _, mark := range marks {
		w.waiting[mark] = true
	}
	watch(t, trace, w)
	if len(w.acked) < len(marks)*9/10 || len(w.waiting) > 0 { // some lie across the end of a write
		t.Errorf("of %d messages, the trace has %d acknowledgements and lacks %d records", len(marks), len(w.acked), len(w.waiting))
	}
}

// publishMarked publishes one by one, and then many at once, and returns what is in each message by its sequence.
func publishMarked(t *testing.T, js jetstream.JetStream) map[uint64]string {
	t.Helper()
	marks := map[uint64]string{}
	var mu sync.Mutex
	publish := func(mark string) {
		ack, err := js.Publish(t.Context(), schema.EventSubject("acme", schema.Activity), []byte(mark))
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		marks[ack.Sequence] = mark
	}
	for i := range 30 {
		publish(fmt.Sprintf("<one by one %d>", i))
	}
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() { publish(fmt.Sprintf("<all at once %d>", i)) })
	}
	all.Wait()
	return marks
}

// brokerWatcher follows each message, by what is in it, from a file to its acknowledgement.
type brokerWatcher struct {
	t       *testing.T
	marks   map[uint64]string
	waiting map[string]bool     // not seen in a file yet
	written map[string]string   // the file it lies in and is not synced
	durable map[string]bool     //
	syncing map[string][]string // what a sync under way is of, by thread
	acked   map[uint64]bool
}

var tracedAck = regexp.MustCompile(`\\"stream\\": ?\\"` + broker.StreamAudit + `\\", ?\\"seq\\": ?(\d+)`)

func (w *brokerWatcher) begins(thread string, c *call) {
	switch {
	case c.syncs():
		w.syncing[thread] = nil
		for mark, path := range w.written {
			if path == c.path {
				w.syncing[thread] = append(w.syncing[thread], mark)
			}
		}
	case c.sends():
		for _, m := range tracedAck.FindAllStringSubmatch(c.text, -1) {
			seq, err := strconv.ParseUint(m[1], 10, 64)
			if err != nil || w.marks[seq] == "" {
				continue
			}
			w.acked[seq] = true
			if mark := w.marks[seq]; !w.durable[mark] {
				w.t.Errorf("message %d was acknowledged, and it was not synced: written to %q", seq, w.written[mark])
			}
		}
	}
}

func (w *brokerWatcher) ends(thread string, c *call) {
	switch {
	case c.syncs():
		for _, mark := range w.syncing[thread] {
			w.durable[mark] = true
			delete(w.written, mark)
		}
		delete(w.syncing, thread)
	case strings.Contains(c.path, "/streams/"+broker.StreamAudit+"/msgs/"):
		for mark := range w.waiting {
			if strings.Contains(c.text, mark) {
				w.written[mark] = c.path
				delete(w.waiting, mark)
			}
		}
	}
}
