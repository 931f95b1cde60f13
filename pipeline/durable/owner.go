package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Adopt gives a file that root has just made at a path, or is about to name so, to the owner of the file that is there,
// or else to the owner of the directory. Other users own what they make. A process in a container may be root without
// the right to change owners; its files stay its own.
func Adopt(f *os.File, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	from, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (!from.Mode().IsRegular() || same(f, from)) {
		from, err = os.Stat(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("find the owner of %s: %w", path, err)
	}
	uid, gid, ok := owner(from)
	if !ok {
		return nil
	}
	if have, err := f.Stat(); err != nil {
		return fmt.Errorf("find the owner of %s: %w", path, err)
	} else if u, g, _ := owner(have); u == uid && g == gid {
		return nil
	}
	if err := f.Chown(uid, gid); err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("give %s to the owner of its directory: %w", path, err)
	}
	return nil
}

// same reports whether a file is the one at a path already, so that its owner says nothing.
func same(f *os.File, at fs.FileInfo) bool {
	info, err := f.Stat()
	return err == nil && os.SameFile(info, at)
}

func owner(info fs.FileInfo) (uid, gid int, ok bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(s.Uid), int(s.Gid), true
}

// MkdirAll is os.MkdirAll for root too: what it makes belongs to the owner of the directory above.
func MkdirAll(dir string, mode fs.FileMode) error {
	if os.Geteuid() != 0 {
		return os.MkdirAll(dir, mode)
	}
	if info, err := os.Stat(dir); err == nil {
		if info.IsDir() {
			return nil
		}
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	}
	if above := filepath.Dir(dir); above != dir {
		if err := MkdirAll(above, mode); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, mode); err != nil {
		if errors.Is(err, fs.ErrExist) { // another process was faster, and sees to the owner
			return nil
		}
		return err
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(Adopt(f, dir), f.Close())
}
