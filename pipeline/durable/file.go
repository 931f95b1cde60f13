// Package durable writes small files, such as keys, that have to be there whole, with their names, after a power cut.
// What root writes belongs to the owner of the directory: a service that runs as its own user must be able to read
// what a tool left in its data_dir.
//
// It never knows what is in one.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// New writes a file that is whole and on disk, or not there. If there is one, it is fs.ErrExist.
func New(path string, data []byte, mode fs.FileMode) error {
	return write(path, data, mode, func(temporary string) error { return os.Link(temporary, path) })
}

// Replace is New for a file that may be there. The new file keeps the owner of the old one.
func Replace(path string, data []byte, mode fs.FileMode) error {
	return write(path, data, mode, func(temporary string) error { return os.Rename(temporary, path) })
}

func write(path string, data []byte, mode fs.FileMode, place func(temporary string) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is gone if it was renamed
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), Adopt(f, path), f.Sync(), f.Close())
	if err == nil {
		err = place(f.Name())
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes what was renamed in a directory last.
func SyncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
