package sftp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// State is what came of a step of a test.
type State string

// The states of a step.
const (
	StepOK       State = "ok"
	StepWarning  State = "warning" // it works, and somebody should look at it
	StepFailed   State = "failed"
	StepNotTried State = "not tried" // a step before it failed
)

// Step is one thing that a test tried.
type Step struct {
	Name string `json:"name"`
	// OK is true of warnings, too.
	OK    bool          `json:"ok"`
	State State         `json:"state"`
	Took  time.Duration `json:"took_ns"`
	// Found is what was found; of a step that failed, what is wrong, and the remedy.
	Found string `json:"found,omitempty"`
}

// The steps of a test of an SFTP server, in order.
const (
	stepSettings   = "settings"
	stepName       = "name"
	stepTCP        = "TCP"
	stepSSH        = "SSH"
	stepAlgorithms = "algorithms"
	stepHostKey    = "host key"
	stepSignIn     = "sign-in"
	stepSFTP       = "SFTP"
	stepPath       = "path"
	stepSpace      = "space"
	stepWrite      = "write"
	stepReadBack   = "read back" // if the settings ask for it
	stepRename     = "rename"
	stepRemove     = "remove"
)

// Report is what a test of a destination found out.
type Report struct {
	Steps []Step `json:"steps,omitempty"`
	// Error is why a step failed, with the remedy; nil if all went well.
	Error error `json:"-"`

	Address string `json:"address"`
	// Addresses are those of its name.
	Addresses     []string `json:"addresses,omitempty"`
	ServerVersion string   `json:"server_version,omitempty"`
	// Offers is what the server has, nil if it did not come to that.
	Offers *Offers `json:"offers,omitempty"`
	// What both sides agreed on, from this side to the server.
	KeyExchange string `json:"key_exchange,omitempty"`
	HostKey     string `json:"host_key,omitempty"`
	Cipher      string `json:"cipher,omitempty"`
	// MAC is empty where the cipher authenticates by itself.
	MAC string `json:"mac,omitempty"`
	// Legacy are those of the algorithms agreed on that are weak.
	Legacy []string `json:"legacy,omitempty"`
	// Fingerprint and KnownHosts are of the key that the server showed; either may be added to
	// Config.HostKeys.
	Fingerprint string `json:"fingerprint,omitempty"`
	KnownHosts  string `json:"known_hosts,omitempty"`
	// HostKeyAccepted tells that it is among Config.HostKeys.
	HostKeyAccepted bool `json:"host_key_accepted"`
	// SignIn are the ways to sign in that the server named.
	SignIn []string `json:"sign_in,omitempty"`
	// Path is the directory as the server calls it.
	Path string `json:"path,omitempty"`
	// Naming is what to set sftp.naming to, if the configured one does not work and another does.
	Naming Naming `json:"naming,omitempty"`
	// FreeBytes is nil if the server does not tell.
	FreeBytes *int64 `json:"free_bytes,omitempty"`
	// PosixRename and Fsync tell of extensions. Without the first, a file is renamed the old way;
	// without the second, nobody knows when it is on the server's disk.
	PosixRename bool `json:"posix_rename"`
	Fsync       bool `json:"fsync"`
}

// OK tells that every step went well.
func (r *Report) OK() bool { return r.Error == nil }

// Probe tries everything a delivery needs, step by step, and leaves nothing there. It stops at the first
// step that fails.
func Probe(ctx context.Context, cfg Config, log *slog.Logger) *Report {
	r := &Report{Address: cfg.Address()}
	for _, name := range []string{
		stepSettings, stepName, stepTCP, stepSSH, stepAlgorithms, stepHostKey, stepSignIn, stepSFTP,
		stepPath, stepSpace, stepWrite, stepReadBack, stepRename, stepRemove,
	} {
		if name != stepReadBack || cfg.Receipt || cfg.Verify == VerifySHA256 {
			r.Steps = append(r.Steps, Step{Name: name, State: StepNotTried})
		}
	}
	start := time.Now()
	c, err := newClient(cfg, log)
	if err != nil {
		r.fail(stepSettings, time.Since(start), err)
		return r
	}
	r.pass(stepSettings, time.Since(start), cfg.User+"@"+cfg.Address())
	if !r.connect(ctx, c) {
		return r
	}
	defer func() { _ = c.Close() }()
	release, err := c.use(ctx, checking)
	if err != nil {
		r.fail(stepPath, 0, err)
		return r
	}
	defer release()
	r.directory(ctx, c)
	return r
}

// Check tries the directory of an open session, as Probe does.
func (c *Client) Check(ctx context.Context) (Report, error) {
	release, err := c.use(ctx, checking)
	if err != nil {
		return Report{}, err
	}
	defer release()
	r := &Report{Address: c.where.address}
	r.server(c)
	r.directory(ctx, c)
	return *r, r.Error
}

const checking = "check the path"

// set changes a step, or adds it.
func (r *Report) set(s Step) {
	for i := range r.Steps {
		if r.Steps[i].Name == s.Name {
			r.Steps[i] = s
			return
		}
	}
	r.Steps = append(r.Steps, s)
}

func (r *Report) pass(name string, took time.Duration, found string) {
	r.set(Step{Name: name, OK: true, State: StepOK, Took: max(took, 0), Found: found})
}

func (r *Report) warn(name string, took time.Duration, found string) {
	r.set(Step{Name: name, OK: true, State: StepWarning, Took: max(took, 0), Found: found})
}

func (r *Report) fail(name string, took time.Duration, err error) {
	r.Error = err
	// Several faults of the settings are several lines.
	r.set(Step{Name: name, State: StepFailed, Took: max(took, 0), Found: strings.ReplaceAll(err.Error(), "\n", "; ")})
}

// connect does the steps up to a session, and tells whether there is one.
func (r *Report) connect(ctx context.Context, c *Client) bool {
	start := time.Now()
	if net.ParseIP(c.cfg.Host) == nil {
		limited, cancel := context.WithTimeout(ctx, c.cfg.ConnectTimeout.or(DefaultConnectTimeout))
		defer cancel()
		var err error
		if r.Addresses, err = net.DefaultResolver.LookupHost(limited, c.cfg.Host); err != nil {
			r.fail(stepName, time.Since(start), c.where.network("look up the host", "", err))
			return false
		}
		r.pass(stepName, time.Since(start), strings.Join(r.Addresses, ", "))
	} else {
		r.pass(stepName, 0, c.cfg.Host+" is an address")
	}
	err := c.dial(ctx)
	end := time.Now()
	if c.conn == nil {
		r.fail(stepTCP, end.Sub(c.passed.began), err)
		return false
	}
	r.pass(stepTCP, c.passed.connected.Sub(c.passed.began), "connected to "+c.conn.RemoteAddr().String())
	r.server(c)
	heard := &c.conn.heard
	if r.ServerVersion == "" {
		r.fail(stepSSH, end.Sub(c.passed.connected), err)
		return false
	}
	r.pass(stepSSH, heard.versionAt.Sub(c.passed.connected), r.ServerVersion)
	if c.hostKey == nil {
		r.fail(stepAlgorithms, end.Sub(heard.versionAt), err)
		return false
	}
	r.algorithms(heard.offersAt.Sub(heard.versionAt))
	took := c.passed.keyShown.Sub(heard.offersAt)
	if errors.Is(err, ErrHostKeyUnknown) || errors.Is(err, ErrHostKeyChanged) {
		r.fail(stepHostKey, took, err)
		return false
	}
	r.HostKeyAccepted = true
	r.pass(stepHostKey, took, fmt.Sprintf("%s %s, as accepted", c.hostKey.Type(), r.Fingerprint))
	if c.passed.signedIn.IsZero() {
		r.fail(stepSignIn, end.Sub(c.passed.keyShown), err)
		return false
	}
	r.pass(stepSignIn, c.passed.signedIn.Sub(c.passed.keyShown), fmt.Sprintf("as %s; the server takes %s", c.cfg.User, strings.Join(r.SignIn, ", ")))
	if err != nil {
		r.fail(stepSFTP, end.Sub(c.passed.signedIn), err)
		return false
	}
	r.extensions(c, end.Sub(c.passed.signedIn))
	return true
}

// server notes what is known of a server, as far as a connection came.
func (r *Report) server(c *Client) {
	r.ServerVersion, r.Offers, _ = c.conn.heard.state()
	r.SignIn = slices.Clone(c.login.takes)
	if c.hostKey != nil {
		r.Fingerprint = ssh.FingerprintSHA256(c.hostKey)
		r.KnownHosts = knownhosts.Line([]string{c.where.address}, c.hostKey)
	}
	switch {
	case c.ssh != nil:
		if meta, ok := c.ssh.Conn.(ssh.AlgorithmsConnMetadata); ok {
			chosen := meta.Algorithms()
			r.KeyExchange, r.HostKey = chosen.KeyExchange, chosen.HostKey
			r.Cipher, r.MAC = chosen.Write.Cipher, chosen.Write.MAC
		}
	case c.hostKey != nil && r.Offers != nil: // agreed on, but there is no session to ask: the first of ours that is among theirs
		first := func(ours, fallback, theirs []string) string {
			for _, name := range orDefault(ours, fallback) {
				if slices.Contains(theirs, name) {
					return name
				}
			}
			return ""
		}
		r.KeyExchange = first(c.cfg.KeyExchanges, defaultKeyExchanges, r.Offers.KeyExchanges)
		r.HostKey = first(typesOf(c.hostKey.Type()), nil, r.Offers.HostKeyAlgorithms)
		r.Cipher = first(c.cfg.Ciphers, defaultCiphers, r.Offers.Ciphers)
		if !strings.Contains(r.Cipher, "-gcm@") && !strings.Contains(r.Cipher, "poly1305") {
			r.MAC = first(c.cfg.MACs, defaultMACs, r.Offers.MACs)
		}
	}
	for _, name := range []string{r.KeyExchange, r.HostKey, r.Cipher, r.MAC} {
		if Legacy(name) {
			r.Legacy = append(r.Legacy, name)
		}
	}
}

func (r *Report) algorithms(took time.Duration) {
	names := []string{r.KeyExchange, r.HostKey, r.Cipher}
	if r.MAC != "" {
		names = append(names, r.MAC)
	}
	found := strings.Join(names, ", ")
	if len(r.Legacy) > 0 {
		r.warn(stepAlgorithms, took, fmt.Sprintf("%s; weak: %s", found, strings.Join(r.Legacy, ", ")))
		return
	}
	r.pass(stepAlgorithms, took, found)
}

func (r *Report) extensions(c *Client, took time.Duration) {
	_, r.PosixRename = c.sftp.HasExtension(posixRename)
	_, r.Fsync = c.sftp.HasExtension(fsync)
	var has, lacks []string
	for _, name := range []string{posixRename, fsync, statVFS} {
		if _, ok := c.sftp.HasExtension(name); ok {
			has = append(has, name)
		} else {
			lacks = append(lacks, name)
		}
	}
	found := "version 3"
	if len(has) > 0 {
		found += "; it has " + strings.Join(has, ", ")
	}
	if len(lacks) > 0 {
		found += "; it lacks " + strings.Join(lacks, ", ")
	}
	r.pass(stepSFTP, took, found)
}

// Below either of these somebody should look at the disk.
const (
	littleBytes = 1 << 30
	littlePart  = 20 // of the whole
)

// directory does the steps in a session.
func (r *Report) directory(ctx context.Context, c *Client) {
	_, r.PosixRename = c.sftp.HasExtension(posixRename)
	_, r.Fsync = c.sftp.HasExtension(fsync)
	try := func(name string, do func() (found string, err error)) bool { return r.try(ctx, c, name, do) }
	if !try(stepPath, func() (found string, err error) {
		if err := c.directory(checking); err != nil {
			return "", err
		}
		r.Path, err = c.sftp.RealPath(c.dir())
		return r.Path, err
	}) {
		return
	}
	r.space(c)

	naming := cmp.Or(c.cfg.Naming, NamingHidden)
	if r.naming(ctx, c, naming) || !namingMatters(r.Error) {
		return
	}
	// Another way to name files may work. What is tried for that leaves the steps as they are.
	for _, other := range namings {
		if other == naming {
			continue
		}
		trial := &Report{PosixRename: r.PosixRename, Fsync: r.Fsync}
		if trial.naming(ctx, c, other) {
			r.Naming = other
			break
		}
	}
	r.propose()
}

// try does a step, and reports whether it went well.
func (r *Report) try(ctx context.Context, c *Client, name string, do func() (found string, err error)) bool {
	start := time.Now()
	found, err := do()
	if err != nil {
		r.fail(name, time.Since(start), c.where.classify(ctx, c.conn, checking, c.cfg.Path, err))
		return false
	}
	r.pass(name, time.Since(start), found)
	return true
}

// namingMatters reports whether a test may have failed because of the names of its files.
func namingMatters(err error) bool {
	return errors.Is(err, ErrNaming) || errors.Is(err, ErrPermission) || errors.Is(err, ErrServer) || errors.Is(err, ErrPathMissing)
}

// propose has the failure of a step say which naming works, or that none does.
func (r *Report) propose() {
	var failed *Error
	if !errors.As(r.Error, &failed) {
		return
	}
	told := *failed
	switch {
	case r.Naming != "":
		told.Remedy = fmt.Sprintf("set sftp.naming=%s, which works there", r.Naming)
	case errors.Is(failed, ErrPermission):
		told.Err, told.Remedy = nil, fmt.Sprintf("let the user %s write there", failed.User) // no name was taken
	}
	r.Error = &told
	for i := range r.Steps {
		if s := &r.Steps[i]; s.State == StepFailed {
			s.Found = told.Error()
		}
	}
}

// naming tries to write a file, and to give it its name in one way, and reports whether that works.
func (r *Report) naming(ctx context.Context, c *Client, naming Naming) bool {
	try := func(name string, do func() (found string, err error)) bool { return r.try(ctx, c, name, do) }
	name := "kansa-check-" + random() + ".zip" // as archives end: a server may take no others
	if naming == NamingHidden {
		name = ".kansa-check." + random() // which is not picked up
	}
	u := &upload{Client: c, action: checking, name: name, target: join(c.cfg.Path, name), naming: naming}
	part, err := u.target, error(nil)
	switch naming {
	case NamingHidden:
		part += partSuffix
	case NamingSuffix, NamingFolder:
		part, err = u.temporaryName()
	case NamingNone:
	}
	left := part
	defer func() {
		if left != "" {
			u.remove(ctx, left)
		}
		if naming == NamingFolder { // unless an upload is in it
			_ = c.sftp.RemoveDirectory(join(c.cfg.Path, temporaryFolder))
		}
	}()
	pickedUp := false
	if !try(stepWrite, func() (found string, _ error) {
		if err != nil {
			return "", err
		}
		found, pickedUp, err = u.writeCheck(part)
		return found, err
	}) {
		return false
	}
	if (c.cfg.Receipt || c.cfg.Verify == VerifySHA256) && !try(stepReadBack, func() (string, error) {
		_, err := c.readBack(ctx, checking, part)
		if pickedUp || errors.Is(err, fs.ErrNotExist) && naming == NamingNone {
			return "it was picked up: there will be no receipts", nil
		}
		return "", err
	}) {
		return false
	}
	if !try(stepRename, func() (string, error) {
		if naming == NamingNone {
			return "not needed: files are written under their names", nil
		}
		way := "by rename, which refuses an existing target"
		if r.PosixRename {
			way = "by " + posixRename
		}
		return way, u.rename(part)
	}) {
		return false
	}
	left = ""
	start := time.Now()
	if err := c.sftp.Remove(u.target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.warn(stepRemove, time.Since(start), fmt.Sprintf("%s can't be removed, so the file of this test stays, and so would parts of uploads that were cut off: %v", u.target, err))
		return true
	}
	r.pass(stepRemove, time.Since(start), "nothing is left of this test")
	return true
}

func (r *Report) space(c *Client) {
	start := time.Now()
	v, ok := c.free()
	took := time.Since(start)
	if !ok {
		r.pass(stepSpace, took, "the server does not tell")
		return
	}
	r.FreeBytes = &v.free
	found := fmt.Sprintf("%s of %s are free", bytesOf(v.free), bytesOf(v.total))
	if v.free < littleBytes || v.free < v.total/littlePart {
		r.warn(stepSpace, took, found+", which is little")
		return
	}
	r.pass(stepSpace, took, found)
}

const checkText = "kansa\n"

// writeCheck writes a small file.
func (u *upload) writeCheck(part string) (found string, pickedUp bool, err error) {
	u.size = int64(len(checkText))
	f, err := u.create(part, false)
	if err != nil {
		return "", false, err
	}
	found = "the server does not tell when it is on its disk"
	_, err = f.Write([]byte(checkText))
	if _, ok := u.sftp.HasExtension(fsync); ok && err == nil {
		found = "on the server's disk"
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", false, u.writeError(refused("write to", part, err))
	}
	pickedUp, err = u.compareSize(part)
	if pickedUp {
		found = "the server took it at once"
	}
	return found, pickedUp, err
}
