package sshd

import (
	"io"
	"os"
	"strings"

	"github.com/pkg/sftp"
)

// windows is files as a server on Windows shows them. Case still matters, which is stricter.
type windows struct{ *files }

var (
	_ sftp.PosixRenameFileCmder = windows{}
	_ sftp.StatVFSFileCmder     = windows{}
	_ sftp.LstatFileLister      = windows{}
	_ sftp.OpenFileWriter       = windows{}
)

// allowed refuses paths that lead to no drive, and names that Windows does not have.
func allowed(paths ...string) error {
	for _, path := range paths {
		drive, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		if drive == "" {
			continue // the list of drives, or no path
		}
		if len(drive) != 2 || drive[1] != ':' {
			return os.ErrNotExist
		}
		for name := range strings.SplitSeq(rest, "/") {
			if strings.ContainsAny(name, `<>:"|?*\`) || strings.HasSuffix(name, ".") || strings.HasSuffix(name, " ") {
				return sftp.ErrSSHFxFailure
			}
		}
	}
	return nil
}

func (w windows) Fileread(r *sftp.Request) (io.ReaderAt, error) {
	if err := allowed(r.Filepath); err != nil {
		return nil, err
	}
	return w.files.Fileread(r)
}

func (w windows) Filewrite(r *sftp.Request) (io.WriterAt, error) { return w.OpenFile(r) }

func (w windows) OpenFile(r *sftp.Request) (sftp.WriterAtReaderAt, error) {
	if err := allowed(r.Filepath); err != nil {
		return nil, err
	}
	return w.files.OpenFile(r)
}

func (w windows) Filecmd(r *sftp.Request) error {
	if err := allowed(r.Filepath, r.Target); err != nil {
		return err
	}
	return w.files.Filecmd(r)
}

func (w windows) PosixRename(r *sftp.Request) error {
	if err := allowed(r.Filepath, r.Target); err != nil {
		return err
	}
	return w.files.PosixRename(r)
}

func (w windows) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	if err := allowed(r.Filepath); err != nil {
		return nil, err
	}
	return w.files.Filelist(r)
}

func (w windows) Lstat(r *sftp.Request) (sftp.ListerAt, error) {
	if err := allowed(r.Filepath); err != nil {
		return nil, err
	}
	return w.files.Lstat(r)
}
