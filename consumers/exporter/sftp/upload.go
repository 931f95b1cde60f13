package sftp

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pkg/sftp"
)

// UploadResult is what was delivered.
type UploadResult struct {
	// Path is the file on the server.
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// Existed tells that the same file was there already, from an upload whose end was not heard.
	Existed bool `json:"existed,omitempty"`
	// Synced tells that the server confirmed that the bytes are on its disk.
	Synced   bool          `json:"synced"`
	Duration time.Duration `json:"duration"`
}

const (
	partSuffix  = ".part"
	partRandom  = 16 // hexadecimal characters
	maxFileName = 255
	maxName     = maxFileName - len(".") - len(".") - partRandom - len(partSuffix)

	posixRename = "posix-rename@openssh.com"
	fsync       = "fsync@openssh.com"
	statVFS     = "statvfs@openssh.com"
)

// Upload delivers size bytes of r as name in the configured directory. When it returns nil, the file
// is there, complete, and (Synced) on the server's disk. When it returns an error, nothing is under
// that name that was not there before; a rename whose answer was lost is the one exception, and the
// next upload finds that out.
//
// A name is for one content, for ever. If the target exists, it counts as delivered only if it reads
// back the same; else it is ErrExists, and is left alone. Two uploads of one name must not run at
// once: each would take the other's part for a leftover, and one of them would fail.
//
// r is read by another goroutine, which is gone when Upload returns: a Read of r should end when ctx
// does. progress, if not nil, is told the bytes handed over so far, by that goroutine.
func (c *Client) Upload(ctx context.Context, name string, size int64, r io.Reader, progress func(int64)) (UploadResult, error) {
	start := time.Now()
	action := fmt.Sprintf("upload %q", name)
	if reason := nameFault(name); reason != "" {
		return UploadResult{}, c.where.fail(ErrConfig, action, c.cfg.Path, reason, nil)
	}
	if size < 0 {
		return UploadResult{}, c.where.fail(ErrSource, action, c.cfg.Path, fmt.Sprintf("the size is %d", size), nil)
	}
	release, err := c.use(ctx, action)
	if err != nil {
		return UploadResult{}, err
	}
	defer release()
	u := &upload{
		Client: c, action: action, name: name, target: join(c.cfg.Path, name), size: size,
		src: newSource(ctx, r, size, progress),
	}
	result, err := u.run(ctx)
	u.src.close()
	if err != nil {
		return UploadResult{}, c.where.classify(ctx, c.conn, action, c.cfg.Path, err)
	}
	result.Path, result.Size, result.SHA256 = u.target, size, hex.EncodeToString(u.src.sum.Sum(nil))
	result.Duration = time.Since(start)
	return result, nil
}

type upload struct {
	*Client
	action, name, target string
	size                 int64
	src                  *source
}

func (u *upload) run(ctx context.Context) (UploadResult, error) {
	if err := u.directory(); err != nil {
		return UploadResult{}, err
	}
	switch info, err := u.sftp.Lstat(u.target); {
	case err == nil:
		return UploadResult{Existed: true}, u.sameAs(ctx, info)
	case !errors.Is(err, fs.ErrNotExist):
		return UploadResult{}, err
	}
	u.removeLeftovers(ctx)
	if err := u.space(u.size); err != nil {
		return UploadResult{}, err
	}
	part := join(u.cfg.Path, partPrefix(u.name)+random()+partSuffix)
	synced, err := u.writePart(part)
	if err == nil {
		err = u.rename(part)
	}
	if err != nil {
		u.remove(ctx, part)
		return UploadResult{}, err
	}
	return UploadResult{Synced: synced}, nil
}

// directory tells a missing directory from a missing file, which SFTP reports alike.
func (u *upload) directory() error {
	dir := u.cfg.Path
	if dir == "" {
		dir = "."
	}
	info, err := u.sftp.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return u.where.fail(ErrPathMissing, u.action, dir, "it is a file: give a directory", nil)
	}
	return nil
}

// writePart leaves a part that is closed and has the right size, or an error.
func (u *upload) writePart(part string) (synced bool, err error) {
	f, err := u.sftp.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return false, err
	}
	open := true
	defer func() {
		if open {
			_ = f.Close() // the write's error is the one that counts
		}
	}()
	_, err = f.ReadFromWithConcurrency(u.src, u.cfg.Concurrency)
	if u.src.err != nil {
		return false, u.where.fail(ErrSource, u.action, u.cfg.Path, "", u.src.err)
	}
	if err != nil {
		return false, u.writeError(err)
	}
	if err := u.src.complete(); err != nil {
		return false, u.where.fail(ErrSource, u.action, u.cfg.Path, "", err)
	}
	if _, ok := u.sftp.HasExtension(fsync); ok {
		if err := f.Sync(); err != nil {
			return false, u.writeError(err)
		}
		synced = true
	}
	open = false
	if err := f.Close(); err != nil {
		return false, u.writeError(err)
	}
	info, err := u.sftp.Stat(part)
	if err != nil {
		return false, err
	}
	if info.Size() != u.size {
		return false, u.where.fail(ErrServer, u.action, u.cfg.Path, "see the server's log",
			fmt.Errorf("the server has %d of %d bytes", info.Size(), u.size))
	}
	return synced, nil
}

// writeError looks whether the disk is full: version 3 of SFTP has no code for that, and a server
// says only "failure".
func (u *upload) writeError(err error) error {
	var status *sftp.StatusError
	if !errors.As(err, &status) || u.conn.failure() != nil {
		return err
	}
	// What is in flight may have been written or not; a megabyte is as good as full.
	if full := u.space(1 << 20); full != nil {
		return full
	}
	return err
}

// space refuses when the server says that there is less than need.
func (u *upload) space(need int64) error {
	free, ok := u.free(u.cfg.Path)
	if !ok || free >= need {
		return nil
	}
	return u.where.fail(ErrNoSpace, u.action, u.cfg.Path, "make room on the server",
		fmt.Errorf("%d bytes are free for an upload of %d", free, u.size))
}

// free asks for the bytes an ordinary user may still write in dir. Not every server knows.
func (c *Client) free(dir string) (int64, bool) {
	if _, ok := c.sftp.HasExtension(statVFS); !ok {
		return 0, false
	}
	if dir == "" {
		dir = "."
	}
	v, err := c.sftp.StatVFS(dir)
	if err != nil || v.Blocks == 0 || v.Frsize == 0 {
		return 0, false
	}
	const most = 1 << 62
	if v.Bavail > most/v.Frsize {
		return most, true
	}
	return int64(v.Bavail * v.Frsize), true
}

// rename gives the part its name. POSIX rename is atomic but replaces a target; plain RENAME refuses
// one at some servers, replaces it at others, and OpenSSH does it by link and unlink. So the target is
// looked for once more, right before. Somebody else who creates that very name in between loses; names
// that are used once are what protects from it.
func (u *upload) rename(part string) error {
	switch _, err := u.sftp.Lstat(u.target); {
	case err == nil:
		return u.exists("it appeared while it was being uploaded", nil)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if _, ok := u.sftp.HasExtension(posixRename); ok {
		return u.sftp.PosixRename(part, u.target)
	}
	return u.sftp.Rename(part, u.target)
}

// sameAs accepts an existing target that reads back the same. An earlier upload may have come so far
// without hearing of it.
func (u *upload) sameAs(ctx context.Context, info fs.FileInfo) error {
	if !info.Mode().IsRegular() || info.Size() != u.size {
		return u.exists(fmt.Sprintf("it has %d bytes instead of %d", info.Size(), u.size), nil)
	}
	if _, err := io.Copy(io.Discard, u.src); err != nil {
		return u.where.fail(ErrSource, u.action, u.cfg.Path, "", err)
	}
	if err := u.src.complete(); err != nil {
		return u.where.fail(ErrSource, u.action, u.cfg.Path, "", err)
	}
	f, err := u.sftp.Open(u.target)
	if err != nil {
		if u.conn.failure() != nil {
			return err
		}
		return u.exists("it can not be read back", err)
	}
	sum := sha256.New()
	_, err = f.WriteTo(writer{ctx, sum})
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if !bytes.Equal(sum.Sum(nil), u.src.sum.Sum(nil)) {
		return u.exists("it has the same size but other contents", nil)
	}
	return nil
}

func (u *upload) exists(what string, err error) error {
	return u.where.fail(ErrExists, u.action, u.cfg.Path, what+"; it was left alone: move it away or use another name", err)
}

// removeLeftovers removes the parts of earlier uploads of this name. A server that lets nobody list a
// directory keeps them.
func (u *upload) removeLeftovers(ctx context.Context) {
	dir := u.cfg.Path
	if dir == "" {
		dir = "."
	}
	infos, err := u.sftp.ReadDir(dir)
	if err != nil {
		u.log.DebugContext(ctx, "sftp directory not listed", "address", u.where.address, "path", dir, "error", err)
		return
	}
	for _, info := range infos {
		random, ok := strings.CutPrefix(info.Name(), partPrefix(u.name))
		if random, ok2 := strings.CutSuffix(random, partSuffix); ok && ok2 && len(random) == partRandom && info.Mode().IsRegular() {
			u.remove(ctx, join(u.cfg.Path, info.Name()))
		}
	}
}

// remove is best effort: what stays is hidden, never read, and removed by the next upload.
func (u *upload) remove(ctx context.Context, part string) {
	if err := u.sftp.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.log.WarnContext(ctx, "sftp part left behind", "address", u.where.address, "path", part, "error", err)
	}
}

type writer struct {
	ctx context.Context
	w   io.Writer
}

func (w writer) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

// join never cleans a path: /C:/in and names relative to the login directory are the server's matter.
func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return strings.TrimRight(dir, "/") + "/" + name
}

func partPrefix(name string) string { return "." + name + "." }

func random() string {
	var b [partRandom / 2]byte
	_, _ = rand.Read(b[:]) // never fails: the program would have ended
	return hex.EncodeToString(b[:])
}

func nameFault(name string) string {
	switch {
	case name == "" || name == "." || name == "..":
		return "give the file a name"
	case len(name) > maxName:
		return fmt.Sprintf("the name has %d bytes, at most %d are possible", len(name), maxName)
	case !utf8.ValidString(name) || strings.ContainsAny(name, `/\`) || strings.ContainsFunc(name, unicode.IsControl):
		return "the name must be one path component, without slashes and control characters"
	}
	return ""
}
