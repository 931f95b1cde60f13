//go:build linux

package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// blockSize is what the disk writes whole or not at all, as disks with sectors of 4 KiB do.
const blockSize = 4096

// medium is a disk with a volatile write cache: what was written since the last flush is in memory only, in each of its
// versions. It is a file that FUSE serves, below a loop device.
type medium struct {
	fs.Inode
	size int64

	mu      sync.Mutex
	off     bool               // the power is
	holding bool               // flushes wait: what is written meanwhile is in the cache when the power goes
	changed *sync.Cond         // off or holding
	written int                // blocks, ever
	stable  *os.File           // what survives
	cached  map[int64][][]byte // by block, the oldest version first
	flushes int
}

var (
	_ fs.NodeOpener    = (*medium)(nil)
	_ fs.NodeGetattrer = (*medium)(nil)
	_ fs.NodeSetattrer = (*medium)(nil)
	_ fs.NodeReader    = (*medium)(nil)
	_ fs.NodeWriter    = (*medium)(nil)
	_ fs.NodeFsyncer   = (*medium)(nil)
)

func newMedium(stable *os.File, size int64) *medium {
	m := &medium{size: size, stable: stable, cached: map[int64][][]byte{}}
	m.changed = sync.NewCond(&m.mu)
	return m
}

// Open has the kernel cache nothing: each write and each flush comes here.
func (m *medium) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (m *medium) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blocks = 0o600, uint64(m.size), uint64(m.size/512)
	return 0
}

func (m *medium) Setattr(ctx context.Context, f fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return m.Getattr(ctx, f, out)
}

func (m *medium) Read(_ context.Context, _ fs.FileHandle, dest []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off {
		return nil, syscall.EIO
	}
	dest = dest[:max(0, min(int64(len(dest)), m.size-at))]
	for n := 0; n < len(dest); {
		block, offset := (at+int64(n))/blockSize, int((at+int64(n))%blockSize)
		part := dest[n:min(len(dest), n+blockSize-offset)]
		copy(part, m.block(block)[offset:])
		n += len(part)
	}
	return fuse.ReadResultData(dest), 0
}

// block is the newest version of a block.
func (m *medium) block(n int64) []byte {
	if v := m.cached[n]; len(v) > 0 {
		return v[len(v)-1]
	}
	data := make([]byte, blockSize)
	_, _ = m.stable.ReadAt(data, n*blockSize) // beyond what was written are zeros
	return data
}

func (m *medium) Write(_ context.Context, _ fs.FileHandle, data []byte, at int64) (uint32, syscall.Errno) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off {
		return 0, syscall.EIO
	}
	for n := 0; n < len(data); {
		block, offset := (at+int64(n))/blockSize, int((at+int64(n))%blockSize)
		version := append([]byte(nil), m.block(block)...)
		n += copy(version[offset:], data[n:])
		m.cached[block] = append(m.cached[block], version)
		m.written++
	}
	return uint32(len(data)), 0
}

func (m *medium) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.holding && !m.off {
		m.changed.Wait()
	}
	if m.off {
		return syscall.EIO
	}
	for n, versions := range m.cached {
		if _, err := m.stable.WriteAt(versions[len(versions)-1], n*blockSize); err != nil {
			return fs.ToErrno(err)
		}
	}
	m.flushes++
	clear(m.cached)
	return 0
}

// loss is what a power cut does with the blocks that were not flushed.
type loss string

const (
	loseAll  loss = "all unsynced blocks are lost"
	loseHalf loss = "half of the unsynced blocks are lost"
	reorder  loss = "an older version of each unsynced block survives" // or none, or the newest
)

var losses = []loss{loseAll, loseHalf, reorder}

// lose takes the power away: from now on nothing is read and nothing is written. It returns how many blocks were not
// flushed, and how many of these survive.
func (m *medium) lose(r *rand.Rand, how loss) (unsynced, kept int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = true
	m.changed.Broadcast()
	unsynced = len(m.cached)
	for n, versions := range m.cached {
		survives := -1
		switch how {
		case loseHalf:
			if r.IntN(2) == 0 {
				survives = len(versions) - 1
			}
		case reorder:
			survives = r.IntN(len(versions)+1) - 1
		}
		if survives >= 0 {
			kept++
			_, _ = m.stable.WriteAt(versions[survives], n*blockSize) // a disk of its own would not say either
		}
	}
	clear(m.cached)
	return unsynced, kept
}

func (m *medium) on() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off, m.holding = false, false
}

// hold has flushes wait until the cut, and what the kernel writes meanwhile be in the cache.
func (m *medium) hold() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holding = true
}

func (m *medium) writes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.written
}

// mediumDir is the directory that has the medium in it.
type mediumDir struct {
	fs.Inode
	file *medium
}

func (d *mediumDir) OnAdd(ctx context.Context) {
	d.AddChild("disk", d.NewPersistentInode(ctx, d.file, fs.StableAttr{Mode: syscall.S_IFREG}), false)
}

// An order is for the process of a medium, which answers each with a report.
type (
	order struct {
		Do   string // nothing, hold, writes, lose, on
		How  loss   // of lose
		Seed uint64 // of lose
	}
	report struct{ Writes, Unsynced, Kept int }
)

// diskMain serves the medium that lies in a directory until its standard input ends. It is a process of its own that starts no
// other: when it is gone, the kernel fails everything that waits for the disk, rather than have it wait for good.
func diskMain(where string) error {
	dir, number, _ := strings.Cut(where, "|")
	size, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return err
	}
	stable, err := os.OpenFile(filepath.Join(dir, "stable"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer stable.Close()
	m := newMedium(stable, size)
	options := fuse.MountOptions{DirectMount: true, MaxWrite: 512 << 10, FsName: "kansa-chaos", DisableXAttrs: true}
	if _, err := fs.Mount(filepath.Join(dir, "medium"), &mediumDir{file: m}, &fs.Options{MountOptions: options}); err != nil {
		return err
	}
	defer func() { _ = syscall.Unmount(filepath.Join(dir, "medium"), syscall.MNT_DETACH) }()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var r report
		switch o.Do {
		case "hold":
			m.hold()
		case "writes":
			r.Writes = m.writes()
		case "lose":
			r.Unsynced, r.Kept = m.lose(rand.New(rand.NewPCG(o.Seed, 0)), o.How)
		case "on":
			m.on()
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
}

// volatileDisk is an ext4 file system on a medium.
type volatileDisk struct {
	file  string // of the medium
	loop  string // the device, while it is attached
	dir   string // where the file system is mounted
	plain bool   // without what ext4 does for programs that do not sync what they rename

	cmd *exec.Cmd // of the medium
	in  io.WriteCloser
	out *json.Decoder
}

// newVolatileDisk makes one and mounts it at dir/disk until the test ends.
func newVolatileDisk(t *testing.T, dir string, size int64, plain bool) *volatileDisk {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	d := &volatileDisk{file: filepath.Join(dir, "medium", "disk"), dir: filepath.Join(dir, "disk"), plain: plain}
	for _, p := range []string{filepath.Dir(d.file), d.dir} {
		must(os.Mkdir(p, 0o700))
	}
	self, err := os.Executable()
	must(err)
	d.cmd = exec.Command(self)
	d.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%d", envDisk, dir, size))
	d.cmd.Stderr = os.Stderr
	d.in, err = d.cmd.StdinPipe()
	must(err)
	out, err := d.cmd.StdoutPipe()
	must(err)
	d.out = json.NewDecoder(out)
	must(d.cmd.Start())
	t.Cleanup(func() {
		_ = d.in.Close()
		kill := time.AfterFunc(diskWithin, func() { _ = d.cmd.Process.Kill() })
		defer kill.Stop()
		if err := d.cmd.Wait(); err != nil {
			t.Errorf("the process of the disk ended: %v", err)
		}
	})
	_, err = d.order(order{})
	must(err)
	must(d.command("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", d.file))
	must(d.mount())
	t.Cleanup(func() {
		if err := d.unmount(); err != nil {
			t.Errorf("unmount %s: %v", d.dir, err)
		}
	})
	return d
}

func (d *volatileDisk) order(o order) (r report, err error) {
	if err := json.NewEncoder(d.in).Encode(o); err != nil {
		return r, fmt.Errorf("order %q of the disk: %w", o.Do, err)
	}
	if err := d.out.Decode(&r); err != nil {
		return r, fmt.Errorf("order %q of the disk: %w", o.Do, err)
	}
	return r, nil
}

// diskWithin bounds each command.
const diskWithin = 30 * time.Second

// command runs a command that uses the disk. If it hangs, the disk is taken away, which ends it.
func (d *volatileDisk) command(name string, args ...string) error {
	var hung atomic.Bool
	kill := time.AfterFunc(diskWithin, func() { hung.Store(true); _ = d.cmd.Process.Kill() })
	defer kill.Stop()
	out, err := exec.Command(name, args...).CombinedOutput()
	if hung.Load() {
		err = errors.Join(err, fmt.Errorf("it hung for %s", diskWithin))
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func (d *volatileDisk) mount() error {
	out, err := exec.Command("losetup", "--find", "--show", d.file).Output()
	if err != nil {
		return fmt.Errorf("losetup: %w", err)
	}
	d.loop = strings.TrimSpace(string(out))
	options := "data=ordered,nodiscard"
	if d.plain {
		options += ",noauto_da_alloc"
	}
	return d.command("mount", "-t", "ext4", "-o", options, d.loop, d.dir)
}

// unmount forgets what the kernel has in memory. After a cut, what it tries to write fails.
func (d *volatileDisk) unmount() error {
	if d.loop == "" {
		return nil
	}
	err := until(context.Background(), diskWithin, func() error { return d.command("umount", d.dir) }) // processes that were killed may hold files for a moment
	if err = errors.Join(err, d.command("losetup", "-d", d.loop)); err == nil {
		d.loop = ""
	}
	return err
}

// cut takes the power away. Unless everything that was not synced is to be lost, the kernel first writes back what programs have
// written, as it may at any time, and the disk has it in its cache.
func (d *volatileDisk) cut(r *rand.Rand, how loss) (unsynced, kept int, err error) {
	if how != loseAll {
		if _, err := d.order(order{Do: "hold"}); err != nil {
			return 0, 0, err
		}
		writtenBack := make(chan struct{})
		go func() { // it ends when the power is off, for the last thing it does is a flush
			defer close(writtenBack)
			_ = d.command("sync", "-f", d.dir) // it fails, as is meant
		}()
		defer func() { <-writtenBack }()
		quiet := time.NewTicker(20 * time.Millisecond)
		defer quiet.Stop()
		for before, same, n := -1, 0, 0; same < 3 && n < 50; n++ {
			<-quiet.C
			now, err := d.order(order{Do: "writes"})
			if err != nil {
				return 0, 0, err
			}
			if same++; now.Writes != before {
				before, same = now.Writes, 0
			}
		}
	}
	lost, err := d.order(order{Do: "lose", How: how, Seed: r.Uint64()})
	return lost.Unsynced, lost.Kept, err
}

// again gives the power back: the file system is mounted as the disk has it.
func (d *volatileDisk) again() error {
	if err := d.unmount(); err != nil {
		return err
	}
	if _, err := d.order(order{Do: "on"}); err != nil {
		return err
	}
	return d.mount()
}
