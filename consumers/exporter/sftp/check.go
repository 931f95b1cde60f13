package sftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/crypto/ssh"
)

// Report is what a test of a destination found out.
type Report struct {
	Address       string `json:"address"`
	ServerVersion string `json:"server_version"`
	// What both sides agreed on, from this side to the server.
	KeyExchange string `json:"key_exchange"`
	HostKey     string `json:"host_key"`
	Cipher      string `json:"cipher"`
	// MAC is empty where the cipher authenticates by itself.
	MAC string `json:"mac,omitempty"`
	// Path is the directory as the server calls it.
	Path string `json:"path"`
	// FreeBytes is nil if the server does not tell.
	FreeBytes *int64 `json:"free_bytes,omitempty"`
	// PosixRename and Fsync tell of extensions. Without the first, a file is renamed the old way;
	// without the second, nobody knows when it is on the server's disk.
	PosixRename bool `json:"posix_rename"`
	Fsync       bool `json:"fsync"`
}

// Check tries everything an upload needs without leaving anything: the path exists, is a directory,
// a file can be written, renamed and removed in it.
func (c *Client) Check(ctx context.Context) (Report, error) {
	const action = "check the path"
	release, err := c.use(ctx, action)
	if err != nil {
		return Report{}, err
	}
	defer release()
	report, err := c.check(ctx, action)
	if err != nil {
		return Report{}, c.where.classify(ctx, c.conn, action, c.cfg.Path, err)
	}
	return report, nil
}

func (c *Client) check(ctx context.Context, action string) (Report, error) {
	report := Report{Address: c.where.address, ServerVersion: string(c.ssh.ServerVersion())}
	if meta, ok := c.ssh.Conn.(ssh.AlgorithmsConnMetadata); ok {
		chosen := meta.Algorithms()
		report.KeyExchange, report.HostKey = chosen.KeyExchange, chosen.HostKey
		report.Cipher, report.MAC = chosen.Write.Cipher, chosen.Write.MAC
	}
	_, report.PosixRename = c.sftp.HasExtension(posixRename)
	_, report.Fsync = c.sftp.HasExtension(fsync)

	name := ".kansa-check." + random()
	u := &upload{Client: c, action: action, name: name, target: join(c.cfg.Path, name)}
	if err := u.directory(); err != nil {
		return Report{}, err
	}
	dir := c.cfg.Path
	if dir == "" {
		dir = "."
	}
	var err error
	if report.Path, err = c.sftp.RealPath(dir); err != nil {
		return Report{}, err
	}
	if free, ok := c.free(dir); ok {
		report.FreeBytes = &free
	}
	part := u.target + partSuffix
	f, err := c.sftp.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return Report{}, err
	}
	_, err = f.Write([]byte("kansa\n"))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		err = u.writeError(err)
	} else {
		err = u.rename(part)
	}
	if err != nil {
		u.remove(ctx, part)
		return Report{}, err
	}
	if err := c.sftp.Remove(u.target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Report{}, fmt.Errorf("remove the file of the check: %w", err)
	}
	return report, nil
}
