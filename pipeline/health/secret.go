package health

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
)

// Secrets are files that only their owner may read, by what names them: a key of the configuration, or what they are.
type Secrets map[string]string

// Look is a Check's.
func (s Secrets) Look(context.Context) error {
	var errs []error
	var gone, open []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		path := s[name]
		info, err := os.Stat(path)
		if err != nil {
			errs, gone = append(errs, fmt.Errorf("%s can not be looked at: %w", name, err)), append(gone, path)
			continue
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
			errs = append(errs, fmt.Errorf("others may read %s: %s has mode %04o, 0600 is enough", name, path, mode))
			open = append(open, path)
		}
	}
	if len(gone) > 0 {
		return Do(errors.Join(errs...), "restore %s from a backup: what it opens or signs is lost without it", strings.Join(gone, " "))
	}
	return Do(errors.Join(errs...), "chmod 600 %s", strings.Join(open, " "))
}
