package engine

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Z11: what tables hold is encrypted, also what was there in plain before; a new key goes in front of the old one; and
// without a key that is needed the engine does not start, rather than set aside what it can't read.
func TestTablesAreEncrypted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const secret = "who-did-what-and-when"
	first, second := Key{1}, Key{2}
	total := 0
	use := func(what string, keys ...Key) {
		t.Helper()
		e := startEngine(t, dir, keys...)
		conn := open(t, e, nil)
		run(t, conn, "CREATE TABLE IF NOT EXISTS t (n UInt64, s String CODEC(NONE)) ENGINE = MergeTree ORDER BY n SETTINGS fsync_after_insert = 1, fsync_part_directory = 1")
		run(t, conn, "INSERT INTO t SELECT number, '"+secret+"' FROM numbers(1000)")
		total += 1000
		var rows uint64
		if err := conn.QueryRow(t.Context(), "SELECT countIf(s = ?) FROM t", secret).Scan(&rows); err != nil || rows != uint64(total) {
			t.Errorf("%s: %d rows, want %d, %v", what, rows, total, err)
		}
		for len(keys) > 0 { // until what was in plain is moved
			var plain uint64
			if err := conn.QueryRow(t.Context(), "SELECT count() FROM system.parts WHERE active AND table = 't' AND disk_name = 'default'").Scan(&plain); err != nil {
				t.Fatal(err)
			}
			if plain == 0 {
				break
			}
		}
		if err := e.Close(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The column is not compressed, so the text is found where it is in plain.
	inPlain := func() (found []string) {
		t.Helper()
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if bytes.Contains(text, []byte(secret)) {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	refused := func(what string, keys ...Key) {
		t.Helper()
		e, err := Start(t.Context(), Options{Dir: dir, Command: []string{os.Args[0], "engine"}, Keys: keys, Logger: testLogger()})
		if !errors.Is(err, ErrKeys) {
			t.Errorf("%s: %v", what, err)
		}
		if err == nil {
			_ = e.Close()
		}
	}
	use("in plain")
	if len(inPlain()) == 0 {
		t.Fatal("what is stored in plain is not found, so this test shows nothing")
	}
	use("encrypted from now on", first)
	if found := inPlain(); len(found) > 0 {
		t.Errorf("it is still there in plain: %q", found)
	}
	refused("without its key")
	refused("with another key alone", second)
	use("with a new key in front", second, first)
	refused("without the old one, which some of it has", second)
	use("in another order", first, second)
	if found := inPlain(); len(found) > 0 {
		t.Errorf("it is there in plain at the end: %q", found)
	}
}

func TestKeysThatCanNotBe(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "# nothing", "abc", strings.Repeat("0", 63), strings.Repeat("x", 64)} {
		if _, err := ParseKeys([]byte(text)); !errors.Is(err, ErrKeys) {
			t.Errorf("%q: %v", text, err)
		}
	}
	keys, err := ParseKeys([]byte("# new\n" + strings.Repeat("01", 32) + "\n\n" + strings.Repeat("02", 32)))
	if err != nil || len(keys) != 2 || keys[0].ID() == keys[1].ID() {
		t.Errorf("got %v, %v", keys, err)
	}
}
