package engine

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// TestKilledAmidInserts kills the child with inserts on their way. Every insert that was answered is there,
// every other whole or not at all, and the address stays.
func TestKilledAmidInserts(t *testing.T) {
	t.Parallel()
	e := startEngine(t, t.TempDir())
	addr := e.Addr()
	conn := open(t, e, nil)
	run(t, conn, "CREATE TABLE k (block UInt64, n UInt64, s String) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1")
	const rows, kills = 5000, 3
	var next, answered atomic.Uint64
	var stored sync.Map
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				block := next.Add(1)
				batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO k")
				if err != nil {
					continue // the child has just died
				}
				for n := range rows {
					if err := batch.Append(block, uint64(n), "some text"); err != nil {
						t.Error(err)
					}
				}
				if err := errors.Join(batch.Send(), batch.Close()); err == nil {
					stored.Store(block, true)
					answered.Add(1)
				}
			}
		})
	}
	for range kills {
		want := answered.Load() + 10
		await.State(t, await.Limit, "ten inserts to be answered", func() (bool, any) {
			return answered.Load() >= want, conn.Ping(t.Context())
		})
		pid := e.PID()
		if pid == 0 {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await.True(t, await.Limit, "the next child", func() bool {
			_ = conn.Ping(t.Context()) // waits in the socket's queue until the next child takes it
			return e.PID() != pid && e.PID() != 0
		})
	}
	close(stop)
	await.Return(t, await.Limit, "the queries to end", group.Wait)
	if e.Addr() != addr || e.Restarts() < kills {
		t.Errorf("address %s, was %s; %d restarts, want at least %d", e.Addr(), addr, e.Restarts(), kills)
	}
	counts, err := conn.Query(t.Context(), "SELECT block, count(), uniqExact(n) FROM k GROUP BY block")
	if err != nil {
		t.Fatal(err)
	}
	defer counts.Close()
	for counts.Next() {
		var block, count, distinct uint64
		if err := counts.Scan(&block, &count, &distinct); err != nil {
			t.Fatal(err)
		}
		if count != rows || distinct != rows {
			t.Errorf("block %d has %d rows (%d distinct), want %d or none", block, count, distinct, rows)
		}
		stored.Delete(block)
	}
	if err := counts.Err(); err != nil {
		t.Fatal(err)
	}
	stored.Range(func(block, _ any) bool { t.Errorf("block %d was answered and is not there", block); return true })
	t.Logf("%d blocks answered, %d tried, %d restarts", answered.Load(), next.Load(), e.Restarts())
}

// Requirement Q4: a database, a user and a random password of its own, made at the first start.
func TestReopenKeepsDataAndPassword(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := Start(t.Context(), Options{Dir: dir, Command: []string{os.Args[0], "engine"}, Logger: testLogger()})
	if err != nil {
		t.Fatal(err)
	}
	conn := open(t, first, nil)
	run(t, conn, "CREATE DATABASE audit")
	run(t, conn, "CREATE TABLE audit.`odd ``name` (n UInt64) ENGINE = MergeTree ORDER BY n")
	run(t, conn, "INSERT INTO audit.`odd ``name` VALUES (1)")
	_, err = Start(t.Context(), Options{Dir: dir, Command: []string{os.Args[0], "engine"}})
	if !errors.Is(err, ErrInUse) {
		t.Errorf("second start: got %v, want %v", err, ErrInUse)
	}
	if err := errors.Join(conn.Close(), first.Close(), first.Close()); err != nil {
		t.Fatalf("close: %v", err)
	}
	for path, want := range map[string]os.FileMode{"": 0o700, "credentials.json": 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if path != "" && info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), want)
		}
	}
	second := startEngine(t, dir)
	if first.Password() != second.Password() {
		t.Error("the password changed")
	}
	conn = open(t, second, func(o *clickhouse.Options) { o.Auth.Database = "audit" })
	if got := one[uint64](t, conn, "SELECT n FROM `odd ``name`"); got != 1 {
		t.Errorf("got %d", got)
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	command := []string{os.Args[0], "engine"}
	broken := filepath.Join(t.TempDir(), "libchdb.so")
	if err := os.WriteFile(broken, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	readable := t.TempDir()
	if err := os.WriteFile(filepath.Join(readable, "credentials.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		options Options
		want    string
	}{
		"missing library": {Options{Dir: t.TempDir(), Command: command, Library: "/no/such/libchdb.so"}, "make engine"},
		"broken library":  {Options{Dir: t.TempDir(), Command: command, Library: broken}, "make engine"},
		"no command":      {Options{Dir: t.TempDir()}, "no command"},
		"bad command":     {Options{Dir: t.TempDir(), Command: []string{"/no/such/program"}}, "no such file"},
		"dying child":     {Options{Dir: t.TempDir(), Command: []string{"false"}}, "exit status 1"},
		"open password":   {Options{Dir: readable, Command: command}, "chmod 600"},
	} {
		_, err := Start(t.Context(), test.options)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want something with %q", name, err, test.want)
		}
	}
}

// TestChildDiesWithParent kills a parent and waits for the end of what its child holds open.
func TestChildDiesWithParent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	parent := exec.Command(os.Args[0], "parent", dir)
	output, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the parent says %q", line)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	await.Return(t, await.Limit, "the killed parent to end", func() { _ = parent.Wait() })
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	// The child holds the lock too; it comes free when both are gone.
	await.State(t, await.Limit, "the lock of the child", func() (bool, any) {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		return err == nil, err
	})
	// The child releases the lock a moment before it ends, and it may remain a zombie.
	await.True(t, await.Limit, "the child to end", func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return syscall.Kill(pid, 0) != nil || err == nil && bytes.Contains(status, []byte(") Z "))
	})
}

// TestLargeResult reads a result many times larger than what the child may grow by.
func TestLargeResult(t *testing.T) {
	if testing.Short() {
		t.Skip("sends 600 MB")
	}
	t.Parallel()
	e := startEngine(t, t.TempDir())
	const rows = 3_000_000
	for _, format := range []string{"Native", "CSV"} {
		before := resident(t, e.PID())
		body, done := get(t, e, "POST", "/?client_protocol_version=54460&default_format="+format, "SELECT number, repeat('x', 200) FROM numbers("+strconv.Itoa(rows)+")")
		var peak, total int64
		buffer := make([]byte, 1<<20)
		for next := int64(0); ; {
			n, err := body.Read(buffer)
			total += int64(n)
			if total >= next {
				peak = max(peak, resident(t, e.PID()))
				next += 32 << 20
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		done()
		t.Logf("%s: %d MB sent, child grew from %d to %d MB", format, total>>20, before>>20, peak>>20)
		if total < rows*200 {
			t.Errorf("%s: got %d bytes", format, total)
		}
		if peak-before > 256<<20 {
			t.Errorf("%s: the child grew by %d MB", format, (peak-before)>>20)
		}
	}
}

func resident(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Skipf("no memory figures on this system: %v", err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(status))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
