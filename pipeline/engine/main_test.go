package engine

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// The test binary is also the child, and the parent that dies in TestChildDiesWithParent.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "engine":
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			err := Main(ctx, os.Stdin, os.Stderr)
			stop()
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "parent":
			e, err := Start(context.Background(), Options{Dir: os.Args[2], Command: []string{os.Args[0], "engine"}})
			if err != nil {
				fmt.Println("error", err)
				os.Exit(1)
			}
			fmt.Println(e.PID())
			select {}
		}
	}
	code := m.Run()
	if shared.engine != nil {
		if err := shared.engine.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close the shared engine:", err)
			code = max(code, 1)
		}
	}
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

var shared struct {
	once   sync.Once
	engine *Engine
	dir    string
	err    error
}

// sharedEngine is one for all tests that do not harm it; their tables have names of their own.
func sharedEngine(t testing.TB) *Engine {
	t.Helper()
	shared.once.Do(func() {
		// It outlives the test that happens to be the first.
		if shared.dir, shared.err = os.MkdirTemp("", "kansa-engine-test-*"); shared.err != nil { //nolint:usetesting // see above
			return
		}
		shared.engine, shared.err = Start(context.Background(), Options{
			Dir: shared.dir, Command: []string{os.Args[0], "engine"}, MaxBody: 512 << 20,
			Readers: []Reader{testReader("acme.ann", "acme"), testReader("acme.bob", "acme"), testReader("globex.eve", "globex"), testReader("all", "")},
			Logger:  testLogger(),
		})
	})
	if shared.err != nil {
		t.Fatalf("start the engine: %v", shared.err)
	}
	return shared.engine
}

// testReader is a reader of the tables of TestReader. Its password is its name.
func testReader(name, organization string) Reader {
	digest := sha256.Sum256([]byte(name))
	filter := ""
	if organization != "" {
		filter = "organization = '" + organization + "'"
	}
	return Reader{
		ID: name, Username: name, Digest: digest[:], Database: "tenants", Tables: map[string]string{"events": filter, "counts": filter}, Group: organization,
		Limits: ReaderLimits{ExecutionTime: time.Minute, Memory: 1 << 30, ResultRows: 1_000_000, Queries: 4},
	}
}

func testLogger() *slog.Logger {
	level := slog.LevelError + 1
	if testing.Verbose() {
		level = slog.LevelWarn
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// startEngine is one for a test that kills it.
func startEngine(t testing.TB, dir string, keys ...Key) *Engine {
	t.Helper()
	e, err := Start(t.Context(), Options{Dir: dir, Command: []string{os.Args[0], "engine"}, Keys: keys, Logger: testLogger()})
	if err != nil {
		t.Fatalf("start the engine: %v", err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	return e
}

func open(t testing.TB, e *Engine, change func(*clickhouse.Options)) driver.Conn {
	t.Helper()
	options := e.Options()
	options.MaxOpenConns = 16
	if change != nil {
		change(options)
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func run(t testing.TB, conn driver.Conn, query string, args ...any) {
	t.Helper()
	if err := conn.Exec(t.Context(), query, args...); err != nil {
		t.Fatalf("%.200s: %v", query, err)
	}
}

func one[T any](t testing.TB, conn driver.Conn, query string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%.200s: %v", query, err)
	}
	return v
}

// tableName is a table's name that no other test has.
func tableName(t testing.TB) string {
	return strings.NewReplacer("/", "_", "-", "_", " ", "_", "=", "_").Replace(strings.ToLower(t.Name()))
}
