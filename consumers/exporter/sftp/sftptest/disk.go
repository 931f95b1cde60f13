//go:build linux

package sftptest

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Mkdir makes a directory beside Dir that belongs to the user.
func (s *Server) Mkdir(t testing.TB, name string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(s.Dir), name)
	must(t, os.Mkdir(path, 0o755))
	must(t, os.Chown(path, s.uid, s.gid))
	must(t, os.Chmod(path, mode))
	return path
}

// SmallDisk makes a directory with a file system of its own, of size bytes, until the test ends.
func (s *Server) SmallDisk(t testing.TB, size int64) string {
	t.Helper()
	path := s.Mkdir(t, fmt.Sprintf("disk-%d", size), 0o755)
	options := fmt.Sprintf("size=%d,uid=%d,gid=%d,mode=755", size, s.uid, s.gid)
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, options); err != nil {
		require(t, fmt.Sprintf("a full disk needs the right to mount: %v", err))
	}
	t.Cleanup(func() {
		// A session that was cut may still have its file open.
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	return path
}
