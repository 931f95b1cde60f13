package sftp

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
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
	Synced bool `json:"synced"`
	// ReadBack tells that the bytes were read from the server under this path, and are those of SHA256.
	ReadBack bool `json:"read_back"`
	// PickedUp tells that the file was taken from the server before it could be looked at: it was delivered.
	PickedUp bool `json:"picked_up,omitempty"`
	// HostKey is the fingerprint of the server's key.
	HostKey string `json:"host_key"`
	// Checksum is the file beside it that has its SHA-256, if that was asked for.
	Checksum string        `json:"checksum,omitempty"`
	Duration time.Duration `json:"duration"`
}

// ChecksumSuffix is added to a file's name for the file that has its checksum.
const ChecksumSuffix = ".sha256"

const (
	partSuffix = ".part"
	partRandom = 16 // hexadecimal characters

	requestRename = "rename"
	maxFileName   = 255
	maxName       = maxFileName - len(".") - len(".") - partRandom - len(partSuffix)

	posixRename = "posix-rename@openssh.com"
	fsync       = "fsync@openssh.com"
	statVFS     = "statvfs@openssh.com"
)

// Upload delivers size bytes of r as name in the configured directory. When it returns nil, the file
// is there, complete, and (Synced) on the server's disk; what Config asks for besides is done. When it
// returns an error, the file may be there, whole, if the error came after its rename, or the answer to
// that was lost; the next upload finds that out and does what is left. Half a file is never there.
//
// With NamingNone, half a file can be there. A name is for one content, for ever. If the target exists, it counts as delivered only if it reads
// back the same; else it is ErrExists, and is left alone. Two uploads of one name must not run at
// once: each would take the other's part for a leftover, and one of them would fail.
//
// r is read by another goroutine, which is gone when Upload returns: a Read of r should end when ctx
// does. progress, if not nil, is told the bytes handed over so far, by that goroutine.
func (c *Client) Upload(ctx context.Context, name string, size int64, r io.Reader, progress func(int64)) (UploadResult, error) {
	start := time.Now()
	action := fmt.Sprintf("upload %q", name)
	longest := name
	if c.cfg.ChecksumFile {
		longest += ChecksumSuffix
	}
	if reason := nameFault(longest); reason != "" || name == "" {
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
	result, err := c.upload(ctx, name, size, r, progress)
	if err == nil && c.cfg.Receipt && !result.ReadBack {
		err = c.readAgain(ctx, action, &result)
	}
	if err == nil && c.cfg.ChecksumFile {
		// sha256sum's own form: two spaces, and names such as these are not escaped.
		line := result.SHA256 + "  " + name + "\n"
		var beside UploadResult
		beside, err = c.upload(ctx, longest, int64(len(line)), strings.NewReader(line), nil)
		result.Checksum = beside.Path
	}
	if err != nil {
		return UploadResult{}, c.where.classify(ctx, c.conn, action, c.cfg.Path, err)
	}
	result.HostKey, result.Duration = ssh.FingerprintSHA256(c.hostKey), time.Since(start)
	return result, nil
}

// upload delivers one file.
func (c *Client) upload(ctx context.Context, name string, size int64, r io.Reader, progress func(int64)) (UploadResult, error) {
	u := &upload{
		Client: c, action: fmt.Sprintf("upload %q", name), name: name, target: join(c.cfg.Path, name), size: size,
		src: newSource(ctx, r, size, progress),
	}
	result, err := u.run(ctx)
	u.src.close()
	if err != nil {
		return UploadResult{}, err
	}
	result.Path, result.Size, result.SHA256 = u.target, size, hex.EncodeToString(u.src.sum.Sum(nil))
	return result, nil
}

// readAgain reads a file that has its name, for the receipt.
func (c *Client) readAgain(ctx context.Context, action string, result *UploadResult) error {
	if result.PickedUp {
		return nil
	}
	sum, err := c.readBack(ctx, action, result.Path)
	if errors.Is(err, fs.ErrNotExist) {
		result.PickedUp = true
		return nil
	}
	if err != nil {
		return err
	}
	if hex.EncodeToString(sum) != result.SHA256 {
		return c.where.fail(ErrExists, action, c.cfg.Path, "see what happened to it on the server, and move it away",
			errors.New("the file was delivered, and reads back otherwise"))
	}
	result.ReadBack = true
	return nil
}

// readBack is the SHA-256 of what the server has under a path.
func (c *Client) readBack(ctx context.Context, action, path string) ([]byte, error) {
	denied := func(err error) error {
		if !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return c.where.fail(ErrPermission, action, c.cfg.Path, fmt.Sprintf("let the user %s read there, or do without verify: sha256 and receipt", c.cfg.User),
			errors.New("it can be written, but not read back"))
	}
	f, err := c.sftp.Open(path)
	if err != nil {
		return nil, denied(err)
	}
	sum := sha256.New()
	_, err = f.WriteTo(writer{ctx, sum})
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, denied(err)
	}
	return sum.Sum(nil), nil
}

type upload struct {
	*Client
	action, name, target string
	size                 int64
	src                  *source
	naming               Naming
}

func (u *upload) run(ctx context.Context) (UploadResult, error) {
	u.naming = cmp.Or(u.cfg.Naming, NamingHidden)
	if err := u.directory(u.action); err != nil {
		return UploadResult{}, err
	}
	info, err := u.look(u.target)
	if err != nil {
		return UploadResult{}, err
	}
	// Even if the target is there: a server that renames by link and unlink may have been stopped between the two.
	u.removeLeftovers(ctx)
	replace := false
	if info != nil {
		if u.naming != NamingNone || info.Mode().IsRegular() && info.Size() == u.size {
			return UploadResult{Existed: true, ReadBack: true}, u.sameAs(ctx, info)
		}
		// With this naming it may be half a file of an attempt that was cut off.
		if replace = info.Mode().IsRegular(); !replace {
			return UploadResult{}, u.exists("it is not a file", nil)
		}
	}
	if err := u.space(u.size); err != nil {
		return UploadResult{}, err
	}
	part := u.target
	if u.naming != NamingNone {
		if part, err = u.temporaryName(); err != nil {
			return UploadResult{}, err
		}
	}
	result, err := u.writePart(part, replace)
	if err == nil && u.cfg.Verify == VerifySHA256 && !result.PickedUp {
		if err = u.verify(ctx, part); errors.Is(err, fs.ErrNotExist) && u.naming == NamingNone {
			result.PickedUp, err = true, nil
		}
	}
	if err == nil && u.naming != NamingNone {
		err = u.rename(part)
	}
	if err != nil {
		u.remove(ctx, part)
		return UploadResult{}, err
	}
	return result, nil
}

// look returns what is under a path; nil if there is nothing, or if the server does not say: some answer a question
// about a file that is not there with a failure, and some answer none. Names are never used twice.
func (u *upload) look(path string) (fs.FileInfo, error) {
	info, err := u.sftp.Lstat(path)
	if err != nil && !answered(err) {
		return nil, err
	}
	if err != nil {
		return nil, nil
	}
	return info, nil
}

// temporaryName is a new name in the place where the file is written. The folder is made if it is not there.
func (u *upload) temporaryName() (string, error) {
	folder, prefix, suffix := u.naming.temporary(u.cfg.Path, u.name)
	if u.naming == NamingFolder {
		if info, err := u.look(folder); err != nil {
			return "", err
		} else if info == nil {
			if err := u.sftp.Mkdir(folder); err != nil && !errors.Is(err, fs.ErrExist) {
				u.log.Debug("sftp folder not made", "address", u.where.address, "path", folder, "error", err) // creating the file says why
			}
		}
	}
	return join(folder, prefix+random()+suffix), nil
}

// directory tells a missing directory from a missing file, which SFTP reports alike.
func (c *Client) directory(action string) error {
	dir := c.dir()
	info, err := c.sftp.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) && !strings.HasPrefix(dir, "/") {
		if home, err := c.sftp.RealPath("."); err == nil {
			return c.where.fail(ErrPathMissing, action, dir, "create it there, or begin the path with a slash",
				fmt.Errorf("without a slash in front it is %q", join(home, dir)))
		}
	}
	if errors.Is(err, fs.ErrNotExist) || err != nil && !answered(err) {
		return err
	}
	if err == nil && !info.IsDir() {
		return c.where.fail(ErrPathMissing, action, dir, "give a directory", errors.New("it is a file"))
	}
	return nil // a server that does not answer questions about files may take them all the same
}

// dir is the configured directory, in words that a server understands.
func (c *Client) dir() string {
	if c.cfg.Path == "" {
		return "."
	}
	return c.cfg.Path
}

// writePart leaves a part that is closed and has the right size, or an error.
func (u *upload) writePart(part string, replace bool) (result UploadResult, err error) {
	f, err := u.create(part, replace)
	if err != nil {
		return result, err
	}
	open := true
	defer func() {
		if open {
			_ = f.Close() // the write's error is the one that counts
		}
	}()
	_, err = f.ReadFromWithConcurrency(u.src, u.cfg.Concurrency)
	if u.src.err != nil {
		return result, u.where.fail(ErrSource, u.action, u.cfg.Path, "", u.src.err)
	}
	if err != nil {
		return result, u.writeError(refused("write to", part, err))
	}
	if err := u.src.complete(); err != nil {
		return result, u.where.fail(ErrSource, u.action, u.cfg.Path, "", err)
	}
	if _, ok := u.sftp.HasExtension(fsync); ok {
		if err := f.Sync(); err != nil {
			return result, u.writeError(refused("sync", part, err))
		}
		result.Synced = true
	}
	open = false
	if err := f.Close(); err != nil {
		return result, u.writeError(refused("close", part, err))
	}
	result.PickedUp, err = u.compareSize(part)
	return result, err
}

// compareSize compares the size of what was written, if the server tells it. A file that is gone was picked up if it
// had its name.
func (u *upload) compareSize(part string) (pickedUp bool, err error) {
	info, err := u.sftp.Stat(part)
	switch {
	case errors.Is(err, fs.ErrNotExist) && u.naming == NamingNone:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, u.taken(part, err)
	case err != nil && answered(err):
		return false, nil
	case err != nil:
		return false, err
	case info.Size() != u.size:
		return false, u.where.fail(ErrServer, u.action, u.cfg.Path, "see the server's log",
			fmt.Errorf("the server has %d of %d bytes", info.Size(), u.size))
	}
	return false, nil
}

// taken is the error for a file that was taken away before it had its name.
func (u *upload) taken(part string, err error) error {
	return u.where.fail(ErrNaming, u.action, u.cfg.Path, "set sftp.naming=none if the server takes each file as soon as it is closed",
		&reason{fmt.Sprintf("%q was taken away before it had its name", part), err})
}

// verify reads a part back: what is not what was sent never gets a name.
func (u *upload) verify(ctx context.Context, part string) error {
	sum, err := u.readBack(ctx, u.action, part)
	if err != nil {
		return err
	}
	if !bytes.Equal(sum, u.src.sum.Sum(nil)) {
		return u.where.fail(ErrServer, u.action, u.cfg.Path, "have the server's disk and memory checked",
			errors.New("the server gives back other bytes than were sent"))
	}
	return nil
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
	v, ok := u.free()
	if !ok || v.free >= need {
		return nil
	}
	return u.where.fail(ErrNoSpace, u.action, u.cfg.Path, "make room on the server",
		fmt.Errorf("%d bytes are free for an upload of %d", v.free, u.size))
}

// room is what an ordinary user may still write, and the size of it all.
type room struct{ free, total int64 }

// free asks for the room in the directory. Not every server knows.
func (c *Client) free() (room, bool) {
	if _, ok := c.sftp.HasExtension(statVFS); !ok {
		return room{}, false
	}
	v, err := c.sftp.StatVFS(c.dir())
	if err != nil || v.Blocks == 0 || v.Frsize == 0 {
		return room{}, false
	}
	const most = 1 << 62
	times := func(blocks uint64) int64 {
		if blocks > most/v.Frsize {
			return most
		}
		return int64(blocks * v.Frsize)
	}
	return room{times(v.Bavail), times(v.Blocks)}, true
}

// rename gives the part its name. POSIX rename is atomic but replaces a target; plain RENAME refuses
// one at some servers, replaces it at others, and OpenSSH does it by link and unlink. So the target is
// looked for once more, right before. Somebody else who creates that very name in between loses; names
// that are used once are what protects from it.
func (u *upload) rename(part string) error {
	if info, err := u.look(u.target); err != nil {
		return err
	} else if info != nil {
		return u.exists("it appeared while it was being uploaded", nil)
	}
	err := error(nil)
	if _, ok := u.sftp.HasExtension(posixRename); ok {
		err = u.sftp.PosixRename(part, u.target)
		if err == nil || !answered(err) || errors.Is(err, fs.ErrNotExist) {
			return u.renamed(part, err)
		}
	}
	return u.renamed(part, u.sftp.Rename(part, u.target))
}

func (u *upload) renamed(part string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := u.sftp.Lstat(part); errors.Is(gone, fs.ErrNotExist) {
			return u.taken(part, err)
		}
	}
	return refused(requestRename, part, err)
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
	sum, err := u.readBack(ctx, u.action, u.target)
	if err != nil {
		if u.conn.failure() != nil || ctx.Err() != nil {
			return err
		}
		if u.naming != NamingNone {
			return u.exists("it can not be read back", err)
		}
		sum = nil
	}
	if bytes.Equal(sum, u.src.sum.Sum(nil)) {
		return nil
	}
	if u.naming != NamingNone {
		return u.exists("it has the same size but other contents", nil)
	}
	// It may be what an attempt left that was cut off: writes are concurrent, so its size says nothing.
	if err := u.sftp.Remove(u.target); err != nil {
		return refused("remove", u.target, err)
	}
	return u.where.fail(ErrServer, u.action, u.cfg.Path, "",
		errors.New("a file of an earlier attempt was not complete, and was removed; the next attempt writes it again"))
}

func (u *upload) exists(what string, err error) error {
	return u.where.fail(ErrExists, u.action, u.cfg.Path, what+"; it was left alone: move it away or use another name", err)
}

// removeLeftovers removes the parts of earlier uploads of this name. A server that lets nobody list a
// directory keeps them.
func (u *upload) removeLeftovers(ctx context.Context) {
	if u.naming == NamingNone {
		return
	}
	folder, prefix, suffix := u.naming.temporary(u.cfg.Path, u.name)
	dir := folder
	if dir == "" {
		dir = u.dir()
	}
	infos, err := u.sftp.ReadDir(dir)
	if err != nil {
		u.log.DebugContext(ctx, "sftp directory not listed", "address", u.where.address, "path", dir, "error", err)
		return
	}
	for _, info := range infos {
		if isTemporary(info.Name(), prefix, suffix) && info.Mode().IsRegular() {
			u.remove(ctx, join(folder, info.Name()))
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
