package engine

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kansa-audit/kansa/pipeline/durable"
)

// credentialsName is the file in the engine's directory, with mode 0600.
const credentialsName = "credentials.json"

// credentials are made at the first start, and kept.
type credentials struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

const ownerName = "kansa"

// loadCredentials reads the directory's credentials, or makes them. A file that others can read is an
// error: its password may be known by now.
func loadCredentials(dir string) (credentials, error) {
	path := filepath.Join(dir, credentialsName)
	var c credentials
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		c = credentials{Username: ownerName, Password: rand.Text() + rand.Text()}
		return c, c.save(path)
	}
	if err != nil {
		return c, fmt.Errorf("read credentials: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return c, fmt.Errorf("read credentials: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return c, fmt.Errorf("read credentials: %s has mode %04o, so others can read it; delete it for a new password, or chmod 600", path, info.Mode().Perm())
	}
	if err := json.Unmarshal(data, &c); err != nil || c.Username == "" || c.Password == "" {
		return c, fmt.Errorf("read credentials: %s is damaged; delete it for a new password", path)
	}
	return c, nil
}

// save is whole or absent after a crash.
func (c credentials) save(path string) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("save credentials: %w", err)
	}
	if err := durable.Replace(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("save credentials: %w", err)
	}
	return nil
}

// ErrInUse says that another process works in the directory.
var ErrInUse = durable.ErrInUse

// lockWait is for the child of a parent that was killed a moment ago.
const lockWait = time.Second

// lockDir keeps the directory for one engine. The lock goes with the last process that holds the file, the
// child included.
func lockDir(dir string) (*os.File, error) {
	file, err := durable.Lock(filepath.Join(dir, "lock"), lockWait)
	if err != nil {
		return nil, fmt.Errorf("open the engine in %s: %w: stop the other engine, or choose another directory", dir, err)
	}
	return file, nil
}
