package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/pipeline/config"
)

func TestSecrets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		secret config.Secret
		want   string
		fails  string
	}{
		"none":                     {},
		"a file":                   {secret: config.Secret{File: file("a", " s3cret\n", 0o600)}, want: "s3cret"},
		"a command":                {secret: config.Secret{Command: []string{"printf", "two\nlines\n"}}, want: "two\nlines"},
		"a file others may read":   {secret: config.Secret{File: file("open", "x", 0o644)}, fails: "chmod 600"},
		"a file that is not there": {secret: config.Secret{File: filepath.Join(dir, "none")}, fails: "no such file"},
		"an empty file":            {secret: config.Secret{File: file("empty", "\n", 0o600)}, fails: "0 bytes"},
		"a file too long":          {secret: config.Secret{File: file("long", strings.Repeat("x", 70<<10), 0o600)}, fails: "bytes"},
		"a command that fails":     {secret: config.Secret{Command: []string{"sh", "-c", "echo no such vault >&2; exit 3"}}, fails: "exit status 3: no such vault"},
		"a command that is not":    {secret: config.Secret{Command: []string{"kansa-no-such-command"}}, fails: "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := c.secret.Read(t.Context())
			if c.fails != "" {
				if !errors.Is(err, config.ErrSecret) || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("got %q, %v; want %q", got, err, c.fails)
				}
				return
			}
			if err != nil || string(got) != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}
