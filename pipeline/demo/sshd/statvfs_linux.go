package sshd

import (
	"syscall"

	"github.com/pkg/sftp"
)

// StatVFS tells of the file system under the root, whichever path was asked for.
func (f *files) StatVFS(*sftp.Request) (*sftp.StatVFS, error) {
	dir, err := f.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var v syscall.Statfs_t
	if err := syscall.Fstatfs(int(dir.Fd()), &v); err != nil {
		return nil, err
	}
	return &sftp.StatVFS{
		Bsize: uint64(v.Bsize), Frsize: uint64(v.Frsize),
		Blocks: v.Blocks, Bfree: v.Bfree, Bavail: v.Bavail,
		Files: v.Files, Ffree: v.Ffree, Favail: v.Ffree,
		Namemax: uint64(v.Namelen),
	}, nil
}
