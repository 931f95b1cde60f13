package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/pipeline/store"
)

// A server that is older than the documented minimum is reported with both versions.
func TestOldClickHouseIsReported(t *testing.T) {
	t.Parallel()
	for version, old := range map[string]bool{
		"25.7.9.1": true, "24.12.1.1": true, "9.1": true, "25.8.1.2": false, "25.8.1.2.altinitystable": false, "25.10.1.1": false, "26.7.2.1": false, "custom": false, "": false,
	} {
		err := store.CheckVersion(version)
		if (err != nil) != old {
			t.Errorf("%s: %v", version, err)
		}
		if err != nil && (!strings.Contains(err.Error(), version) || !strings.Contains(err.Error(), store.MinVersion)) {
			t.Errorf("%s: the error does not name both versions: %v", version, err)
		}
	}
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "README.md"))
	if err != nil || !strings.Contains(string(text), "ClickHouse "+store.MinVersion+" or newer") {
		t.Errorf("deploy/README.md does not state the minimum, %s; %v", store.MinVersion, err)
	}
}
