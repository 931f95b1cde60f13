package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/durable"
)

const (
	// OperatorKeyFile is the file of data_dir with the API key of the tools on this machine. Reading it makes an operator.
	OperatorKeyFile = "operator.key"
	// operatorKeyName is the key's name.
	operatorKeyName = "local-operator"
	// operatorKeyYears is for how long it works; a start in its last year replaces it.
	operatorKeyYears = 10
)

// OperatorKeyFile is where the tools on this machine find their key.
func (s *System) OperatorKeyFile() string { return filepath.Join(s.Config.DataDir, OperatorKeyFile) }

// keepOperatorKey makes sure that the operator's key file has a key that works. A file that others can read gets a new key, since the
// old one may be known.
func (s *System) keepOperatorKey(ctx context.Context) error {
	path := s.OperatorKeyFile()
	failed := func(err error) error {
		return fmt.Errorf("make the operator's key %s: %w", path, err)
	}
	secret, err := os.ReadFile(path)
	switch info, statErr := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil || statErr != nil:
		return fmt.Errorf("%w: move it away, and a new key is made", failed(errors.Join(err, statErr)))
	case info.Mode().Perm()&0o077 != 0:
		s.log.Warn("other users could read the operator's key: it is replaced", slog.String("file", path), slog.String("mode", info.Mode().Perm().String()))
	default:
		who, err := s.Access.ByKey(ctx, strings.TrimSpace(string(secret)))
		if err == nil && who.Role == access.Admin && who.Organization == "" && time.Until(who.Until) > 365*24*time.Hour {
			return nil
		}
		if err != nil && !errors.Is(err, access.ErrUnknown) {
			return failed(err)
		}
	}
	if _, err := s.Access.RevokeKey(ctx, operatorKeyName); err != nil && !errors.Is(err, access.ErrNone) {
		return failed(err)
	}
	now := time.Now().UTC()
	key, err := s.Access.CreateKey(ctx, &access.Key{Name: operatorKeyName, Role: access.Admin, By: "start", Expires: now.AddDate(operatorKeyYears, 0, 0).Truncate(time.Second)})
	if err != nil {
		return failed(err)
	}
	return durable.Replace(path, []byte(key+"\n"), 0o600)
}
