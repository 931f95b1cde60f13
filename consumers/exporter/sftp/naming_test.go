//go:build linux

package sftp_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	pkgsftp "github.com/pkg/sftp"

	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp/sftptest"
	"github.com/kansa-audit/kansa/pipeline/demo/sshd"
)

// rules are those of a server that does not take what others do.
type rules struct {
	pkgsftp.Handlers
	// open, rename and look may refuse a request by its path.
	open, look func(name string) error
	rename     error
	noExcl     bool
	// closed and renamed are called with paths, as a program that watches a directory is.
	closed, renamed func(name string)
}

func (r *rules) wrap(h pkgsftp.Handlers) pkgsftp.Handlers {
	w := *r
	w.Handlers = h
	return pkgsftp.Handlers{FileGet: h.FileGet, FilePut: &w, FileCmd: &w, FileList: &w}
}

func (r *rules) Filewrite(q *pkgsftp.Request) (io.WriterAt, error) { return r.OpenFile(q) }

func (r *rules) OpenFile(q *pkgsftp.Request) (pkgsftp.WriterAtReaderAt, error) {
	if r.noExcl && q.Pflags().Excl {
		return nil, pkgsftp.ErrSSHFxOpUnsupported
	}
	if r.open != nil {
		if err := r.open(q.Filepath); err != nil {
			return nil, err
		}
	}
	f, err := r.FilePut.(pkgsftp.OpenFileWriter).OpenFile(q)
	if err != nil || r.closed == nil {
		return f, err
	}
	return &watched{f, sync.OnceFunc(func() { r.closed(q.Filepath) })}, nil
}

type watched struct {
	pkgsftp.WriterAtReaderAt
	closed func()
}

func (w *watched) Close() error {
	err := w.WriterAtReaderAt.(io.Closer).Close()
	w.closed()
	return err
}

func (r *rules) Filecmd(q *pkgsftp.Request) error {
	if q.Method == "Rename" {
		return r.renames(q, func() error { return r.FileCmd.Filecmd(q) })
	}
	if q.Method == "Mkdir" && r.open != nil {
		if err := r.open(q.Filepath); err != nil {
			return err
		}
	}
	return r.FileCmd.Filecmd(q)
}

func (r *rules) PosixRename(q *pkgsftp.Request) error {
	return r.renames(q, func() error { return r.FileCmd.(pkgsftp.PosixRenameFileCmder).PosixRename(q) })
}

func (r *rules) renames(q *pkgsftp.Request, do func() error) error {
	if r.rename != nil {
		return r.rename
	}
	err := do()
	if err == nil && r.renamed != nil {
		r.renamed(q.Target)
	}
	return err
}

func (r *rules) Filelist(q *pkgsftp.Request) (pkgsftp.ListerAt, error) {
	if q.Method == "Stat" && r.look != nil {
		if err := r.look(q.Filepath); err != nil {
			return nil, err
		}
	}
	return r.FileList.Filelist(q)
}

func (r *rules) Lstat(q *pkgsftp.Request) (pkgsftp.ListerAt, error) {
	if r.look != nil {
		if err := r.look(q.Filepath); err != nil {
			return nil, err
		}
	}
	return r.FileList.(pkgsftp.LstatFileLister).Lstat(q)
}

// strict starts a server with rules, whose directory /in gets files.
func strict(t *testing.T, r *rules) (cfg sftp.Config, dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "in"), 0o755); err != nil {
		t.Fatal(err)
	}
	server, err := sshd.Start(t.Context(), sshd.Options{Dir: dir, User: "u", Password: "secret-word", Wrap: r.wrap})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	host, port, err := net.SplitHostPort(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return sftp.Config{Host: host, Port: n, User: "u", Password: "secret-word", Path: "/in", HostKeys: []string{server.HostKeyFingerprint()}}, dir
}

// takes moves each file away that is told to it, into a directory of its own.
func takes(t *testing.T, root *string) (take func(name string), taken func() []string) {
	t.Helper()
	away := t.TempDir()
	return func(name string) {
			if err := os.Rename(filepath.Join(*root, name), filepath.Join(away, path.Base(name))); err != nil {
				t.Error(err)
			}
		}, func() []string {
			entries, err := os.ReadDir(away)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			return names
		}
}

// deliver uploads a file, and says whether the directory has it and nothing else.
func deliver(t *testing.T, cfg sftp.Config, name string) (sftp.UploadResult, error) {
	t.Helper()
	c, err := sftp.Dial(t.Context(), cfg, discard)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	text := strings.Repeat("an archive ", 1000)
	return c.Upload(t.Context(), name, int64(len(text)), strings.NewReader(text), nil)
}

// Servers whose rules forbid the usual way: the test says which request was refused and which naming works, and with
// that naming a file is delivered whole.
func TestServersWithRulesOfTheirOwn(t *testing.T) {
	t.Parallel()
	denied := func(refuse func(base string) bool) func(string) error {
		return func(name string) error {
			if refuse(path.Base(name)) {
				return pkgsftp.ErrSSHFxPermissionDenied
			}
			return nil
		}
	}
	noDots := denied(func(base string) bool { return strings.HasPrefix(base, ".") })
	onlyZIP := denied(func(base string) bool { return !strings.HasSuffix(base, ".zip") })
	endings := denied(func(base string) bool { return !strings.HasSuffix(base, ".zip") && base != "kansa-tmp" })
	for name, c := range map[string]struct {
		rules  rules
		naming sftp.Naming
		says   string // of the default, with the naming that works
	}{
		"no rename":           {rules{rename: pkgsftp.ErrSSHFxOpUnsupported}, sftp.NamingNone, `refused to rename "/in/.kansa-check.`},
		"rename forbidden":    {rules{rename: pkgsftp.ErrSSHFxPermissionDenied}, sftp.NamingNone, `refused to rename "/in/.kansa-check.`},
		"no dots in front":    {rules{open: noDots}, sftp.NamingSuffix, `refused to create "/in/.kansa-check.`},
		"only some endings":   {rules{open: endings}, sftp.NamingFolder, `refused to create "/in/.kansa-check.`},
		"only archives":       {rules{open: onlyZIP}, sftp.NamingNone, `refused to create "/in/.kansa-check.`},
		"no flag for new":     {rules{noExcl: true}, "", ""},
		"no looks":            {rules{look: func(string) error { return pkgsftp.ErrSSHFxPermissionDenied }}, "", ""},
		"failures for misses": {rules{}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var dir string
			if name == "failures for misses" {
				c.rules.look = func(name string) error {
					if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
						return pkgsftp.ErrSSHFxFailure
					}
					return nil
				}
			}
			var cfg sftp.Config
			cfg, dir = strict(t, &c.rules)
			r := sftp.Probe(t.Context(), cfg, discard)
			if r.OK() != (c.naming == "") || r.Naming != c.naming {
				t.Fatalf("naming %q, %v; want %q", r.Naming, r.Error, c.naming)
			}
			if c.naming != "" {
				for _, want := range []string{c.says, "set sftp.naming=" + string(c.naming)} {
					if !strings.Contains(r.Error.Error(), want) {
						t.Errorf("no word of %q in: %v", want, r.Error)
					}
				}
				if _, err := deliver(t, cfg, "kansa_first.zip"); !sftp.Permanent(err) {
					t.Errorf("a delivery by the default: %v", err)
				}
				cfg.Naming = r.Naming
				if r := sftp.Probe(t.Context(), cfg, discard); !r.OK() {
					t.Errorf("with what was proposed: %v", r.Error)
				}
			}
			for _, existed := range []bool{false, true} {
				if name == "no looks" || name == "failures for misses" {
					existed = name == "failures for misses" && existed // whether it is there is not said
				}
				result, err := deliver(t, cfg, "kansa_second.zip")
				if err != nil || result.Existed != existed {
					t.Errorf("%+v, %v", result, err)
				}
			}
			entries, err := os.ReadDir(filepath.Join(dir, "in"))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if e.Name() != "kansa_second.zip" && e.Name() != "kansa-tmp" {
					t.Errorf("%s is left", e.Name())
				}
			}
			if text, err := os.ReadFile(filepath.Join(dir, "in", "kansa_second.zip")); err != nil || len(text) != 11000 {
				t.Errorf("%d bytes, %v", len(text), err)
			}
		})
	}
}

// A server that takes files as soon as they are closed, or renamed: what was taken was delivered, with a receipt asked
// for or not.
func TestFilesThatArePickedUpAreDelivered(t *testing.T) {
	t.Parallel()
	t.Run("when closed", func(t *testing.T) {
		t.Parallel()
		var dir string
		take, taken := takes(t, &dir)
		var cfg sftp.Config
		cfg, dir = strict(t, &rules{closed: take})
		cfg.Receipt, cfg.Verify = true, sftp.VerifySHA256
		r := sftp.Probe(t.Context(), cfg, discard)
		if r.OK() || r.Naming != sftp.NamingNone {
			t.Fatalf("naming %q, %v", r.Naming, r.Error)
		}
		if _, err := deliver(t, cfg, "a.zip"); !errors.Is(err, sftp.ErrNaming) || !strings.Contains(err.Error(), "sftp.naming=none") {
			t.Errorf("by the default: %v", err)
		}
		cfg.Naming = sftp.NamingNone
		result, err := deliver(t, cfg, "b.zip")
		if err != nil || !result.PickedUp || result.ReadBack {
			t.Errorf("%+v, %v", result, err)
		}
		if names := strings.Join(taken(), " "); !strings.Contains(names, "b.zip") {
			t.Errorf("taken: %s", names)
		}
	})
	t.Run("when renamed", func(t *testing.T) {
		t.Parallel()
		var dir string
		take, taken := takes(t, &dir)
		var cfg sftp.Config
		cfg, dir = strict(t, &rules{renamed: take})
		cfg.Receipt = true
		if r := sftp.Probe(t.Context(), cfg, discard); !r.OK() {
			t.Errorf("a test: %v", r.Error)
		}
		result, err := deliver(t, cfg, "a.zip")
		if err != nil || !result.PickedUp || result.ReadBack {
			t.Errorf("%+v, %v", result, err)
		}
		if names := strings.Join(taken(), " "); !strings.Contains(names, "a.zip") {
			t.Errorf("taken: %s", names)
		}
	})
}

// With files under their own names, half a file of an attempt that was cut off is written again, and nothing else is.
func TestHalfAFileIsWrittenAgain(t *testing.T) {
	t.Parallel()
	cfg, dir := strict(t, &rules{rename: pkgsftp.ErrSSHFxOpUnsupported})
	cfg.Naming = sftp.NamingNone
	file := filepath.Join(dir, "in", "a.zip")
	for _, half := range []string{"an arch", strings.Repeat("\x00", 11000)} {
		if err := os.WriteFile(file, []byte(half), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := deliver(t, cfg, "a.zip")
		if len(half) == 11000 { // whether it is complete shows when it is read: the next attempt writes it
			if err == nil || sftp.Permanent(err) {
				t.Errorf("a file with holes: %v", err)
			}
			_, err = deliver(t, cfg, "a.zip")
		}
		if text, readErr := os.ReadFile(file); err != nil || readErr != nil || string(text) != strings.Repeat("an archive ", 1000) {
			t.Errorf("%d bytes, %v, %v", len(text), err, readErr)
		}
	}
}

// OpenSSH itself, with renames forbidden to the user.
func TestOpenSSHWithoutRenames(t *testing.T) {
	t.Parallel()
	s := sftptest.StartOpenSSH(t, sftptest.WithConfig("ForceCommand internal-sftp -P posix-rename,rename"))
	cfg := config(s)
	r := sftp.Probe(t.Context(), cfg, discard)
	if r.OK() || r.Naming != sftp.NamingNone || !strings.Contains(r.Error.Error(), "refused to rename") {
		t.Fatalf("naming %q, %v", r.Naming, r.Error)
	}
	cfg.Naming = r.Naming
	if r := sftp.Probe(t.Context(), cfg, discard); !r.OK() {
		t.Error(r.Error)
	}
	if _, err := deliver(t, cfg, "a.zip"); err != nil {
		t.Error(err)
	}
}

// A server that asks for a code after the password is reported as such, and never gets the password for a code.
func TestOneTimeCodeIsReported(t *testing.T) {
	t.Parallel()
	server, err := sshd.Start(t.Context(), sshd.Options{Dir: t.TempDir(), User: "u", Password: "secret-word", Code: "123456"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	_, port, err := net.SplitHostPort(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	cfg := sftp.Config{Host: "127.0.0.1", Port: n, User: "u", Password: "secret-word", HostKeys: []string{server.HostKeyFingerprint()}}
	r := sftp.Probe(t.Context(), cfg, discard)
	if !errors.Is(r.Error, sftp.ErrAuth) || !strings.Contains(r.Error.Error(), `"Verification code"`) || !strings.Contains(r.Error.Error(), "private key") {
		t.Errorf("got %v", r.Error)
	}
}
