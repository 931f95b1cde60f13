package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/pipeline/engine"
)

// partCmd is a process of the system under test. It is this same program, so that what is measured is what
// was built, and a process of its own, so that the kernel says what it costs.
type partCmd struct {
	Name    string `arg:"" help:"Which part to be."`
	Profile string `help:"Where to write profiles: the beginning of their names."`
}

// report is what a part says on its standard output, one JSON object a line: first when it is ready, then
// every so often, and last with Done.
type report struct {
	URL       string  `json:"url,omitempty"`
	Published uint64  `json:"published,omitempty"` // events handed to the SDK, or to the connection
	Acked     uint64  `json:"acked,omitempty"`     // events on the broker's disk
	Bytes     uint64  `json:"bytes,omitempty"`     // of messages, as sent
	Stored    uint64  `json:"stored,omitempty"`    // rows in the table
	Inserts   uint64  `json:"inserts,omitempty"`
	Rejected  uint64  `json:"rejected,omitempty"`
	Seconds   float64 `json:"seconds,omitempty"` // of the work alone
	FirstByte float64 `json:"first_byte,omitempty"`
	NATS      string  `json:"nats,omitempty"`
	Engine    int     `json:"engine,omitempty"`  // the id of its process
	Answers   string  `json:"answers,omitempty"` // how often each was had, as JSON
	Done      bool    `json:"done,omitempty"`
	Error     string  `json:"error,omitempty"`
}

// order is what a part is told on its standard input, after its settings. The end of input tells it to
// finish.
type order struct {
	Limit uint64 `json:"limit"` // events that may have been published by now
}

// reportEvery is how fresh the counts are on which a measurement relies.
const reportEvery = 20 * time.Millisecond

// session is a part's side of the conversation.
type session struct {
	in  *json.Decoder
	mu  sync.Mutex
	out *json.Encoder
}

func (s *session) say(r report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.out.Encode(r) // a parent that is gone has closed our input too
}

// untilTold ends when the parent closes the input. orders, if not nil, hears what is said before.
func (s *session) untilTold(ctx context.Context, orders func(order)) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with the process at the latest: a read can't be interrupted
		defer cancel()
		for {
			var o order
			if s.in.Decode(&o) != nil {
				return
			}
			if orders != nil {
				orders(o)
			}
		}
	}()
	return ctx
}

// tell reports every so often until ctx ends; the returned function waits for its end.
func (s *session) tell(ctx context.Context, now func() report) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(reportEvery)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				s.say(now())
			}
		}
	}()
	return func() { <-done }
}

var parts = map[string]func(context.Context, *session) (report, error){
	"broker":   brokerPart,
	"writer":   writerPart,
	"producer": producerPart,
	"gateway":  gatewayPart,
	"inserter": inserterPart,
	"rollup":   rollupPart,
	"archive":  archivePart,
	"system":   systemPart,
	"loud":     loudPart,
}

func (c *partCmd) run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	if c.Profile != "" {
		stop, err := profile(c.Profile)
		if err != nil {
			return err
		}
		defer stop()
	}
	if c.Name == "engine" {
		return engine.Main(ctx, stdin, stderr)
	}
	part, ok := parts[c.Name]
	if !ok {
		return fmt.Errorf("there is no part %q", c.Name)
	}
	s := &session{in: json.NewDecoder(bufio.NewReader(stdin)), out: json.NewEncoder(stdout)}
	last, err := part(ctx, s)
	last.Done = true
	if err != nil {
		last.Error = err.Error()
	}
	s.say(last)
	return err
}

// profile writes a CPU profile until stop is called, and then one of the heap.
func profile(prefix string) (stop func(), err error) {
	cpu, err := os.Create(prefix + ".cpu.pprof")
	if err != nil {
		return nil, fmt.Errorf("write a profile: %w", err)
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, fmt.Errorf("write a profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		_ = cpu.Close()
		if heap, err := os.Create(prefix + ".heap.pprof"); err == nil {
			_ = pprof.Lookup("allocs").WriteTo(heap, 0)
			_ = heap.Close()
		}
	}, nil
}
