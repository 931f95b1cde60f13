package verify

import (
	"encoding/json"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/schema/seal/sealtest"
)

// The published vectors of schema/seal, each a store that is good/ but for some files.
func TestVectors(t *testing.T) {
	t.Parallel()
	root := os.DirFS("../../schema/seal/testdata/vectors")
	index, err := fs.ReadFile(root, "vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var list []struct {
		Name, Why string
		OK        bool
		Remove    []string
	}
	if err := json.Unmarshal(index, &list); err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		s := &sealtest.Store{Files: map[string][]byte{}}
		for _, from := range []string{"good", "bad/" + v.Name} {
			err := fs.WalkDir(root, from, func(p string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				s.Files[strings.TrimPrefix(p, from+"/")], err = fs.ReadFile(root, p)
				return err
			})
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		for _, name := range v.Remove {
			delete(s.Files, name)
		}
		for _, key := range []string{"first.pub", "second.pub"} {
			public, err := fs.ReadFile(root, key)
			if err != nil {
				t.Fatal(err)
			}
			if r := verifyStore(t, s, Options{Key: strings.TrimSpace(string(public)), FromStart: true}); r.OK != v.OK {
				t.Errorf("%s, %s (%s): %v", key, v.Name, v.Why, r.Faults)
			}
		}
	}
}
