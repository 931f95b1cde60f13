package pipelinetest

import (
	"os"
	"path/filepath"
	"testing"
)

// DataFile returns the path of a file of recorded events, or false where they are not at hand: the folder
// is that of KANSA_TEST_DATA, or shared/data beside the checkout.
func DataFile(t testing.TB, name string) (string, bool) {
	t.Helper()
	dir := os.Getenv("KANSA_TEST_DATA")
	if dir == "" {
		root, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for ; root != filepath.Dir(root); root = filepath.Dir(root) {
			if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
				break
			}
		}
		dir = filepath.Join(root, "..", "shared", "data")
	}
	path := filepath.Join(dir, name)
	_, err := os.Stat(path)
	return path, err == nil
}
