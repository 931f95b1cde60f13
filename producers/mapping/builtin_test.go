package mapping

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

var update = flag.Bool("update", false, "write the events that built-in mappings have to give")

// inputs lists the recorded inputs of a built-in mapping, by their file names.
func inputs(t *testing.T, files fs.FS) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, pattern := range []string{"input*.*", "failures*.*"} {
		names, err := fs.Glob(files, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".expected.ndjson") {
				continue
			}
			text, err := fs.ReadFile(files, name)
			if err != nil {
				t.Fatal(err)
			}
			all[name] = text
		}
	}
	return all
}

func TestBuiltinMappingsGiveTheExpectedEvents(t *testing.T) {
	t.Parallel()
	for _, name := range Builtin() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, err := Load(name)
			if err != nil {
				t.Fatal(err)
			}
			files, err := BuiltinFiles(name)
			if err != nil {
				t.Fatal(err)
			}
			all := inputs(t, files)
			if len(all) < 2 {
				t.Errorf("%d recorded inputs: give input.* and failures.*", len(all))
			}
			for file, text := range all {
				var got []byte
				for line, err := range Lines(bytes.NewReader(text), Options{Mapping: m, Now: func() time.Time { return testNow }}) {
					if err != nil || line.Err != nil {
						t.Fatalf("%s:%s: %v, %v", file, line.Place(), err, line.Err)
					}
					if line.Skipped {
						continue
					}
					if strings.HasPrefix(file, "failures") && line.Event.Outcome == schema.Success {
						t.Errorf("%s:%s: a failure became a success: %s", file, line.Place(), line.Raw)
					}
					line.Event.Data = nil // the record itself
					if got, err = codec.AppendJSON(got, &line.Event); err != nil {
						t.Fatal(err)
					}
					got = append(got, '\n')
				}
				expected := strings.TrimSuffix(file, path.Ext(file)) + ".expected.ndjson"
				if *update {
					if err := os.WriteFile("builtin/"+name+"/"+expected, got, 0o644); err != nil {
						t.Fatal(err)
					}
					continue
				}
				want, err := fs.ReadFile(files, expected)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
					t.Errorf("%s (-want +got):\n%s", file, diff)
				}
			}
		})
	}
}

// A copy of a log in another form gives events of the same ids.
func TestBuiltinMappingsGiveStableIDs(t *testing.T) {
	t.Parallel()
	for _, name := range Builtin() {
		m, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		files, err := BuiltinFiles(name)
		if err != nil {
			t.Fatal(err)
		}
		for file, text := range inputs(t, files) {
			ids := map[string]int{}
			count := 0
			for line, err := range Lines(bytes.NewReader(text), Options{Mapping: m, Now: func() time.Time { return testNow }}) {
				if err != nil || line.Err != nil {
					t.Fatal(errors.Join(err, line.Err))
				}
				if !line.Skipped {
					count++
					ids[line.Event.ID.String()]++
				}
			}
			if len(ids) != count {
				t.Errorf("%s/%s: %d events have %d ids", name, file, count, len(ids))
			}
		}
	}
}
