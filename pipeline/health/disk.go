package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Disk is a directory that the process writes to, and the bytes that should be free there.
type Disk struct {
	Name  string // of what lies there
	Dir   string
	Least uint64
}

// errUnknown means that this system does not tell how full a disk is.
var errUnknown = errors.New("this system does not tell how much of a disk is free")

// Free returns the bytes that are free for this process, and all. A directory that is not there yet is its
// parent's.
func (d Disk) Free() (free, all uint64, err error) {
	dir := filepath.Clean(d.Dir)
	for parent := filepath.Dir(dir); parent != dir; parent = filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			break
		}
		dir = parent
	}
	if free, all, err = diskFree(dir); err != nil {
		return 0, 0, fmt.Errorf("ask how full the disk of %s is: %w", d.Dir, err)
	}
	return free, all, nil
}

// Look is a Check's.
func (d Disk) Look(context.Context) error {
	free, all, err := d.Free()
	switch {
	case errors.Is(err, errUnknown):
		return nil
	case err != nil:
		return err
	case free < d.Least:
		return Do(fmt.Errorf("the disk of %s (%s) is nearly full: %s of %s are free, %s should be", d.Name, d.Dir, Size(free), Size(all), Size(d.Least)),
			"make room: deploy/RUNBOOK.md, Full disk; health.disk_free is the bound")
	}
	return nil
}

// Size is a number of bytes as people say it.
func Size(n uint64) string {
	unit, name := uint64(1), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if n/unit < 1024 {
			break
		}
		unit, name = unit<<10, next
	}
	return fmt.Sprintf("%.1f %s", float64(n)/float64(unit), name)
}
