package engine

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// A disk that fills up amid merges, again and again: whatever the engine makes of them, every row that was
// inserted is there when there is room again.
func TestMergesOnAFullDisk(t *testing.T) {
	t.Parallel()
	for name, keys := range map[string][]Key{"plain": nil, "encrypted": {{1}}} {
		t.Run(name, func(t *testing.T) { t.Parallel(); mergesOnAFullDisk(t, keys) })
	}
}

func mergesOnAFullDisk(t *testing.T, keys []Key) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128m"); err != nil {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatalf("a full disk needs the right to mount: %v", err)
		}
		t.Skipf("a full disk needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	e := startEngine(t, filepath.Join(dir, "data"), keys...)
	conn := open(t, e, nil)
	run(t, conn, "CREATE TABLE m (n UInt64, s String) ENGINE = ReplacingMergeTree ORDER BY n SETTINGS fsync_after_insert = 1, fsync_part_directory = 1")
	var sure, perhaps uint64 // rows
	insert := func() {
		const rows = 50
		perhaps += rows
		if conn.Exec(t.Context(), "INSERT INTO m SELECT rand64(), randomPrintableASCII(100) FROM numbers(50)") == nil {
			sure += rows
		}
	}
	for round := range 16 {
		for range 8 {
			insert()
		}
		ballast := filepath.Join(dir, "ballast")
		fillDisk(t, ballast, int64(round%3)*24<<10)
		for range 6 {
			_ = conn.Exec(t.Context(), "OPTIMIZE TABLE m") // what comes of it is seen below
			insert()
		}
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		untilWhole(t, conn, sure, perhaps)
	}
	if sure == 0 {
		t.Error("nothing was inserted, so this test shows nothing")
	}
	t.Logf("the engine was started again %d times", e.Restarts())
}

func TestEmptyPart(t *testing.T) {
	t.Parallel()
	dir := fstest.MapFS{
		"store/abc/table/all_1_2_1/checksums.txt":            {Data: []byte("checksums format version: 4")},
		"store/abc/table/tmp_merge_all_1_3_1/checksums.txt":  {},
		"store/abc/table/delete_tmp_all_1_1_0/checksums.txt": {},
		"store/abc/table/detached/all_1_1_0/checksums.txt":   {},
	}
	if got := emptyPart(dir, 0); got != "" {
		t.Errorf("got %s", got)
	}
	dir["store/abc/table/all_1_3_1/checksums.txt"] = &fstest.MapFile{}
	if got := emptyPart(dir, 0); got != "store/abc/table/all_1_3_1" {
		t.Errorf("got %q", got)
	}
}

// fillDisk leaves so many bytes of a disk.
func fillDisk(t *testing.T, ballast string, leave int64) {
	t.Helper()
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var s syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(ballast), &s); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(s.Bavail)*s.Bsize-leave); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// untilWhole waits until the rows can be read, and finds as many as there have to be.
func untilWhole(t *testing.T, conn clickhouse.Conn, sure, perhaps uint64) {
	t.Helper()
	await.State(t, await.Limit, "the rows to be readable", func() (bool, any) {
		var rows, bytes uint64
		err := conn.QueryRow(t.Context(), "SELECT count(), sum(length(s)) FROM m").Scan(&rows, &bytes)
		if err == nil {
			if rows < sure || rows > perhaps || bytes != 100*rows {
				t.Fatalf("%d rows of %d bytes, want %d to %d", rows, bytes, sure, perhaps)
			}
		}
		return err == nil, err
	})
}

// What the writer's insertRows is for: the engine knows the token of a part that it had to set aside. If it
// does not any more, the writer looks once too often, and this test says so.
func TestTokenOutlivesItsRows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := startEngine(t, dir)
	conn := open(t, e, nil)
	run(t, conn, "CREATE TABLE d (n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 100")
	insert := func(token string) (rows uint64) {
		t.Helper()
		ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"insert_deduplication_token": token}))
		if err := conn.Exec(ctx, "INSERT INTO d SELECT number FROM numbers(10)"); err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(t.Context(), "SELECT count() FROM d").Scan(&rows); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	if rows := insert("a"); rows != 10 {
		t.Fatalf("%d rows, want 10", rows)
	}
	files, err := filepath.Glob(filepath.Join(dir, "data", "store", "*", "*", "all_1_1_0", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no part is found: %v", err)
	}
	for _, f := range files {
		if err := os.Truncate(f, 0); err != nil {
			t.Fatal(err)
		}
	}
	before := e.Restarts()
	if err := syscall.Kill(e.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for e.Restarts() == before { // the next one sets the part aside
		_ = conn.Ping(t.Context()) // its error says what is known
	}
	untilReadable(t, conn)
	if rows := insert("a"); rows != 0 {
		t.Errorf("under the same token, %d rows are stored: the engine forgets it with its part now", rows)
	}
	if rows := insert("b"); rows != 10 {
		t.Errorf("under another token, %d rows are stored, want 10", rows)
	}
}

func untilReadable(t *testing.T, conn clickhouse.Conn) {
	t.Helper()
	await.State(t, await.Limit, "the table to be readable", func() (bool, any) {
		var rows uint64
		err := conn.QueryRow(t.Context(), "SELECT count() FROM d").Scan(&rows)
		return err == nil, err
	})
}
