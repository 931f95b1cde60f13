package mapping

import (
	"os"
	"path/filepath"
	"testing"
)

// dataFile is a file of recorded events, or "" where they are not at hand.
func dataFile(name string) string {
	dir := os.Getenv("KANSA_TEST_DATA")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "data")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

func TestBuiltinMappingsOnRecordedLogs(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]struct {
		path string
		rows int
	}{"cloudtrail": {"cloudtrail.ndjson", 103}, "windows": {"windows-events.ndjson.gz", 10000}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, want := dataFile(file.path), file.rows
			if path == "" {
				path, want = filepath.Join("testdata", name+".ndjson"), 3
			}
			m, err := Load(name)
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			n := 0
			for line, err := range Lines(f, Options{Mapping: m}) {
				if err != nil {
					t.Fatal(err)
				}
				n++
				if line.Err != nil {
					t.Fatalf("line %d: %v", line.Number, line.Err)
				}
				if string(line.Event.Data) != string(line.Raw) {
					t.Fatalf("line %d: data is not the record:\n%s\n%s", line.Number, line.Event.Data, line.Raw)
				}
			}
			if n != want {
				t.Errorf("%d events, want %d", n, want)
			}
		})
	}
}
