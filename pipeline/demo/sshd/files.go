package sshd

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/pkg/sftp"
)

// files answers SFTP requests out of a directory. Paths come cleaned and absolute; os.Root keeps all
// of them, and the links on their way, inside.
type files struct{ root *os.Root }

// The interfaces without which pkg/sftp would quietly do something else.
var (
	_ sftp.PosixRenameFileCmder = (*files)(nil)
	_ sftp.StatVFSFileCmder     = (*files)(nil)
	_ sftp.LstatFileLister      = (*files)(nil)
	_ sftp.OpenFileWriter       = (*files)(nil)
)

func local(path string) string {
	if path = strings.TrimPrefix(path, "/"); path == "" {
		return "."
	}
	return path
}

func (f *files) Fileread(r *sftp.Request) (io.ReaderAt, error) {
	return f.root.Open(local(r.Filepath))
}

func (f *files) Filewrite(r *sftp.Request) (io.WriterAt, error) { return f.OpenFile(r) }

func (f *files) OpenFile(r *sftp.Request) (sftp.WriterAtReaderAt, error) {
	want := r.Pflags()
	flag := os.O_WRONLY
	if want.Read {
		flag = os.O_RDWR
	}
	// Append is left out: writes carry their offsets, which O_APPEND would disregard.
	for _, bit := range []struct {
		set  bool
		flag int
	}{{want.Creat, os.O_CREATE}, {want.Excl, os.O_EXCL}, {want.Trunc, os.O_TRUNC}} {
		if bit.set {
			flag |= bit.flag
		}
	}
	return f.root.OpenFile(local(r.Filepath), flag, 0o644)
}

func (f *files) Filecmd(r *sftp.Request) error {
	name, target := local(r.Filepath), local(r.Target)
	switch r.Method {
	case "Setstat":
		return f.setstat(r, name)
	case "Rename":
		return f.rename(name, target)
	case "Link":
		return f.root.Link(name, target)
	case "Mkdir":
		return f.root.Mkdir(name, 0o755)
	case "Remove":
		return f.removeFile(name)
	case "Rmdir":
		return f.root.Remove(name)
	default: // Symlink among them: nobody needs one here
		return sftp.ErrSSHFxOpUnsupported
	}
}

// rename is that of version 3, which never replaces a target: a link fails if there is one, at once
// and for certain.
func (f *files) rename(name, target string) error {
	info, err := f.root.Lstat(name)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		if _, err := f.root.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, fs.ErrExist)
		}
		return f.root.Rename(name, target)
	}
	if err := f.root.Link(name, target); err != nil {
		return err
	}
	return f.root.Remove(name)
}

// PosixRename replaces a target, as posix-rename@openssh.com promises.
func (f *files) PosixRename(r *sftp.Request) error {
	return f.root.Rename(local(r.Filepath), local(r.Target))
}

func (f *files) removeFile(name string) error {
	info, err := f.root.Lstat(name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return sftp.ErrSSHFxFailure
	}
	return f.root.Remove(name)
}

func (f *files) setstat(r *sftp.Request, name string) error {
	has, want := r.AttrFlags(), r.Attributes()
	if has.Size {
		file, err := f.root.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		err = file.Truncate(int64(want.Size))
		if cerr := file.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	if has.Permissions {
		if err := f.root.Chmod(name, want.FileMode().Perm()); err != nil {
			return err
		}
	}
	if has.Acmodtime {
		return f.root.Chtimes(name, time.Unix(int64(want.Atime), 0), time.Unix(int64(want.Mtime), 0))
	}
	return nil // owners stay: there is one user
}

func (f *files) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	name := local(r.Filepath)
	switch r.Method {
	case "List":
		dir, err := f.root.Open(name)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		infos, err := dir.Readdir(-1)
		return listing(infos), err
	case "Stat":
		info, err := f.root.Stat(name)
		return listing{info}, err
	default: // Readlink
		return nil, sftp.ErrSSHFxOpUnsupported
	}
}

func (f *files) Lstat(r *sftp.Request) (sftp.ListerAt, error) {
	info, err := f.root.Lstat(local(r.Filepath))
	return listing{info}, err
}

type listing []os.FileInfo

func (l listing) ListAt(out []os.FileInfo, offset int64) (int, error) {
	if offset >= int64(len(l)) {
		return 0, io.EOF
	}
	n := copy(out, l[offset:])
	if n < len(out) {
		return n, io.EOF
	}
	return n, nil
}
