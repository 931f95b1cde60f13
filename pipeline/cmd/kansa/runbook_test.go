package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/demo/sshd"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/partitions"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/schema"
)

// runbookFile is what is executed.
var runbookFile = filepath.Join("..", "..", "..", "deploy", "RUNBOOK.md")

// block is a fenced block of commands.
type block struct{ heading, text string }

// blocks finds the fenced blocks of commands of a Markdown text, with the heading that each is under.
func blocks(markdown string) (all []block) {
	heading, fence, lines := "", "", []string(nil)
	for line := range strings.Lines(markdown) {
		line = strings.TrimSuffix(line, "\n")
		trimmed := strings.TrimLeft(line, " ")
		switch indent := line[:len(line)-len(trimmed)]; {
		case fence == "" && strings.HasPrefix(line, "##"):
			heading = strings.TrimSpace(strings.TrimLeft(line, "#"))
		case fence == "" && strings.HasPrefix(trimmed, "```"):
			fence, lines = trimmed, []string{}
		case fence != "" && trimmed == "```":
			if fence == "```sh" {
				all = append(all, block{heading, strings.Join(lines, "\n")})
			}
			fence = ""
		case fence != "":
			lines = append(lines, strings.TrimPrefix(line, indent))
		}
	}
	return all
}

func runbook(t *testing.T) []block {
	t.Helper()
	text, err := os.ReadFile(runbookFile)
	if err != nil {
		t.Fatal(err)
	}
	return blocks(string(text))
}

// procedures are the headings of the runbook that have commands, each with the test that executes them.
var procedures = map[string]func(*procedure){
	"Backup and restore":                                 testBackup,
	"ClickHouse is lost, the rest is there":              testLostClickHouse,
	"The table is lost, or differs from what was sealed": testLostTable,
	"Upgrade":                 testUpgrade,
	"Checks":                  testChecks,
	"Lag":                     testLag,
	"Disagreement":            testDisagreement,
	"Dead letters":            testDeadLetters,
	"Deliveries that fail":    testDeliveries,
	"Full disk":               testFullDisk,
	"Key rotation":            testKeyRotation,
	"A trail is switched off": testTrailOff,
	"Legal hold":              testLegalHold,
	"Moving an organization":  testMove,
}

// notHere are the headings and commands that no test executes, with the reason.
var notHere = map[string]string{
	"Adding a node":                  "needs a second machine with systemd, or servers of NATS; deploy's TestNATSCluster starts three servers of these files",
	"Losing a node":                  "needs the nats tool and a cluster",
	"kubectl -n kansa exec rollup-0": "needs a cluster of Kubernetes",
}

// Every heading of the runbook with commands is executed, or says why not.
func TestRunbookIsExecuted(t *testing.T) {
	t.Parallel()
	has := map[string]bool{}
	for _, b := range runbook(t) {
		has[b.heading] = true
	}
	for heading := range has {
		if procedures[heading] == nil && notHere[heading] == "" {
			t.Errorf("%q has commands that no test executes: add it to procedures, or to notHere with the reason", heading)
		}
	}
	for heading := range procedures {
		if !has[heading] {
			t.Errorf("%q is not a heading with commands", heading)
		}
	}
}

// Each procedure of the runbook is executed by root next to a service that runs as another user.
func TestRunbook(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the service runs as another user than the operator")
	}
	for heading, test := range procedures {
		t.Run(heading, func(t *testing.T) {
			t.Parallel()
			p := &procedure{T: t, heading: heading}
			for _, b := range runbook(t) {
				if b.heading == heading {
					p.left = append(p.left, b.text)
				}
			}
			test(p)
			for _, text := range p.left {
				if !t.Failed() && !excused(text) {
					t.Errorf("these commands were not executed:\n%s", text)
				}
			}
		})
	}
}

func excused(text string) bool {
	for begin := range notHere {
		if strings.HasPrefix(text, begin) {
			return true
		}
	}
	return false
}

// serviceUser runs the service: nobody, whom every system has.
const serviceUser = 65534

// procedure is a heading of the runbook on a machine of its own.
type procedure struct {
	*testing.T
	heading string
	left    []string // blocks that were not executed yet

	root, home                    string
	api, health, clickhouse, nats int
	env                           []string
	unit                          *unit
	table                         *store.Store // of query, once it is open
	password                      string       // of table
}

// install makes a machine with the service installed, as deploy/README.md has it, below a directory in place of /.
func (p *procedure) install(config string) {
	p.Helper()
	p.root = p.TempDir()
	p.must(os.Chmod(filepath.Dir(p.root), 0o755)) //nolint:gosec // the service has to get through
	p.home = p.at("/root")
	self, err := os.Executable()
	p.must(err)
	library, err := engine.FindLibrary("")
	p.must(err)
	for dir, own := range map[string]int{"/": 0, "/root": 0, "/bin": 0, "/usr/bin": 0, "/usr/lib/kansa": 0, "/etc/kansa": 0, "/var/lib/kansa": serviceUser} {
		p.must(os.MkdirAll(p.at(dir), 0o755))
		p.must(os.Chown(p.at(dir), own, own))
	}
	p.must(os.Chmod(p.at("/var/lib/kansa"), 0o700))
	p.must(os.Chown(p.at("/etc/kansa"), 0, serviceUser))
	p.must(os.Chmod(p.at("/etc/kansa"), 0o750)) //nolint:gosec // the group reads it
	p.must(os.Chmod(p.home, 0o700))
	program := p.at("/bin/kansa.test")
	if os.Link(self, program) != nil {
		p.sh("install -m 0755 " + self + " " + program)
	}
	p.api, p.health, p.clickhouse, p.nats = freePort(p.T), freePort(p.T), freePort(p.T), freePort(p.T)
	p.unit = &unit{p: p, log: p.at("/root/journal")}
	p.write("/usr/bin/kansa", "#!/bin/sh\nexport "+asKansa+"=1 "+engine.LibraryEnv+"="+library+"\nexec "+program+" \"$@\"\n", 0o755)
	control := httptest.NewServer(p.unit)
	p.Cleanup(control.Close)
	p.write("/bin/systemctl", "#!/bin/sh\nexec curl -fsS -X POST "+control.URL+"/$1/$2\n", 0o755)
	p.write("/bin/journalctl", "#!/bin/sh\nexec cat "+p.unit.log+"\n", 0o755)
	p.env = append(os.Environ(), "PATH="+p.at("/bin")+":"+p.at("/usr/bin")+":"+os.Getenv("PATH"), "HOME="+p.home,
		// In place of the defaults, which are the same for all machines.
		fmt.Sprintf("KANSA_NATS_URL=nats://127.0.0.1:%d", p.nats), "KANSA_DATA_DIR="+p.at("/var/lib/kansa"))
	p.configure(config)
	p.Cleanup(p.close)
	p.Cleanup(p.unit.stop)
	p.unit.start()
	p.ready()
}

// configure writes the configuration; lines that the test does not give are about ports and short times.
func (p *procedure) configure(more string) {
	p.Helper()
	text := fmt.Sprintf("data_dir: /var/lib/kansa\nnats: {port: %d}\napi: {listen: '127.0.0.1:%d'}\nhealth: {listen: '127.0.0.1:%d'}\nclickhouse: {listen: '127.0.0.1:%d'}\n"+
		"exports: {allow: {networks: [127.0.0.0/8]}}\n", p.nats, p.api, p.health, p.clickhouse)
	if !strings.Contains(more, "writer:") {
		more += "writer: {ack_wait: 4s, insert_timeout: 1s}\n"
	}
	if !strings.Contains(more, "rollup:") {
		more += "rollup: {hour: 1s}\n"
	}
	p.write("/etc/kansa/kansa.yaml", p.place(text+more), 0o644)
}

func (p *procedure) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p *procedure) at(path string) string { return filepath.Join(p.root, filepath.FromSlash(path)) }

func (p *procedure) write(path, text string, mode fs.FileMode) {
	p.Helper()
	p.must(os.WriteFile(p.at(path), []byte(text), mode))
	p.must(os.Chmod(p.at(path), mode))
}

// place puts this machine's directories, ports and user into a text. What has them already stays as it is.
func (p *procedure) place(text string) string {
	for _, dir := range []string{"/var/lib/kansa", "/etc/kansa", "/usr/bin/kansa", "/usr/lib/kansa"} {
		text = strings.ReplaceAll(strings.ReplaceAll(text, p.at(dir), dir), dir, p.at(dir))
	}
	return strings.NewReplacer(
		"127.0.0.1:8080", fmt.Sprintf("127.0.0.1:%d", p.api), "127.0.0.1:8081", fmt.Sprintf("127.0.0.1:%d", p.health),
		"-o kansa -g kansa", fmt.Sprintf("-o %d -g %d", serviceUser, serviceUser),
	).Replace(text)
}

// limit bounds each wait and each command.
const runbookLimit = 2 * time.Minute

// try runs commands as root in root's home directory.
func (p *procedure) try(commands string) (out string, err error) {
	ctx, cancel := context.WithTimeout(p.Context(), runbookLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-eu", "-c", commands) //nolint:gosec // the runbook's own
	cmd.Dir, cmd.Env = p.home, p.env
	var both bytes.Buffer
	cmd.Stdout, cmd.Stderr = &both, &both
	err = cmd.Run()
	return both.String(), err
}

func (p *procedure) sh(commands string) (out string) {
	p.Helper()
	out, err := p.try(commands)
	if err != nil {
		p.Fatalf("%v:\n%s\n%s", err, commands, out)
	}
	return out
}

// take is the first block of the heading that was not executed yet and has these words, with this machine's places and what
// replaces the examples in it.
func (p *procedure) take(has string, examples ...string) string {
	p.Helper()
	for i, text := range p.left {
		if strings.Contains(text, has) {
			p.left = append(p.left[:i:i], p.left[i+1:]...)
			for n := 0; n < len(examples); n += 2 {
				if !strings.Contains(text, examples[n]) {
					p.Fatalf("%q is not in these commands:\n%s", examples[n], text)
				}
			}
			return p.place(strings.NewReplacer(examples...).Replace(text))
		}
	}
	p.Fatalf("%s has no commands with %q", p.heading, has)
	return ""
}

// do executes a block.
func (p *procedure) do(has string, examples ...string) (out string) {
	p.Helper()
	return p.sh(p.take(has, examples...))
}

// says executes a line, which has to print something.
func (p *procedure) says(want, commands string) {
	p.Helper()
	if out := p.sh(commands); !strings.Contains(out, want) {
		p.Errorf("%s\nprinted no %q:\n%s", commands, want, out)
	}
}

// until waits until something is so.
func (p *procedure) until(what string, condition func() (bool, any)) {
	p.Helper()
	pipelinetest.Until(p.T, runbookLimit, func() (bool, any) {
		done, saw := condition()
		return done, fmt.Sprintf("waiting until %s: %v", what, saw)
	})
}

// ready waits until the service answers that it is ready.
func (p *procedure) ready() {
	p.Helper()
	p.until("the service is ready", func() (bool, any) {
		request, err := http.NewRequestWithContext(p.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/readyz", p.api), nil)
		p.must(err)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return false, err
		}
		return response.StatusCode == http.StatusOK, errors.Join(response.Body.Close(), errors.New(response.Status))
	})
}

// publish publishes n events of an organization's activity trail.
func (p *procedure) publish(organization string, n int) {
	p.Helper()
	p.publishTo(organization, "activity", n)
}

func (p *procedure) publishTo(organization, trail string, n int) {
	p.Helper()
	var lines strings.Builder
	for range n {
		fmt.Fprintf(&lines, `{"occurred_at":%q,"organization":%q,"trail":%q,"source":"s","event":"e","action":"a"}`+"\n", time.Now().UTC().Format(time.RFC3339Nano), organization, trail)
	}
	p.write("/root/events", lines.String(), 0o600)
	p.sh("kansa publish events")
}

// query is what a statement gives, from the service's own ClickHouse.
func (p *procedure) query(sql string) (string, error) {
	var login struct{ Username, Password string }
	text, err := os.ReadFile(p.at("/var/lib/kansa/clickhouse/credentials.json"))
	if err == nil {
		err = json.Unmarshal(text, &login)
	}
	if err != nil {
		return "", err
	}
	if p.table == nil || login.Password != p.password {
		p.close()
		p.table, err = store.Open(p.Context(), store.Options{URL: fmt.Sprintf("http://127.0.0.1:%d", p.clickhouse), Username: login.Username, Password: login.Password})
		if err != nil {
			return "", err
		}
		p.password = login.Password
	}
	if !strings.HasPrefix(sql, "SELECT") {
		return "", p.table.Conn().Exec(p.Context(), sql)
	}
	var value string
	err = p.table.Conn().QueryRow(p.Context(), sql).Scan(&value)
	return value, err
}

// close ends the connection of query.
func (p *procedure) close() {
	if p.table != nil {
		_ = p.table.Close()
		p.table = nil
	}
}

// stored waits until the table has n events of acme, of those that publish makes.
func (p *procedure) stored(n int) {
	p.Helper()
	p.until(fmt.Sprintf("%d events are stored", n), func() (bool, any) {
		got, err := p.query("SELECT toString(count()) FROM audit_events WHERE source = 's' AND organization = 'acme'")
		return err == nil && got == fmt.Sprint(n), fmt.Sprint(got, err)
	})
}

// sealed waits until the partitions of an organization's activity trail, which are verified, have n events, and no others than
// the table has. The identity opens encrypted partitions.
func (p *procedure) sealed(organization string, n int, identity string) {
	p.Helper()
	o := verify.Options{}
	if _, path, ok := strings.Cut(identity, "-i "); ok {
		text, err := os.ReadFile(path)
		p.must(err)
		o.Identities, err = partitions.Identities(text)
		p.must(err)
	}
	p.until(fmt.Sprintf("%d events of %s are sealed", n, organization), func() (bool, any) {
		// The trail also has what the system recorded of the organization.
		table, err := p.query("SELECT concat(toString(count()), ' ', toString(countIf(source = 's'))) FROM audit_events WHERE trail = 'activity' AND organization = '" + organization + "'")
		if err != nil || !strings.HasSuffix(table, fmt.Sprintf(" %d", n)) {
			return false, fmt.Sprintf("%s events are stored, %v", table, err)
		}
		key, err := os.ReadFile(p.at("/var/lib/kansa/seal.pub"))
		if err != nil {
			return false, err
		}
		o.Key = strings.TrimSpace(string(key))
		report, err := verify.Path(p.Context(), p.at("/var/lib/kansa/partitions"), o)
		if err != nil || !report.OK {
			return false, fmt.Sprint(err, report)
		}
		rows := uint64(0)
		for _, series := range report.Series {
			if series.Organization == organization && series.Trail == schema.Activity {
				rows += series.Rows
			}
		}
		return table == fmt.Sprintf("%d %d", rows, n), fmt.Sprintf("%d rows are sealed, %s stored", rows, table)
	})
}

// owned checks that the service owns what is in a directory, without which it cannot go on or start again.
func (p *procedure) owned(dir string) {
	p.Helper()
	p.must(filepath.WalkDir(p.at(dir), func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the service works on
			return nil
		}
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if s := info.Sys().(*syscall.Stat_t); s.Uid != serviceUser {
			p.Errorf("%s belongs to user %d; the service is user %d", path, s.Uid, serviceUser)
		}
		return nil
	}))
}

// well checks that the service stores and seals, also after another start, and that nothing that it needs is root's.
func (p *procedure) well(before int, identity string) {
	p.Helper()
	p.owned("/var/lib/kansa")
	p.publish("acme", 5)
	p.sealed("acme", before+5, identity)
	p.sh("systemctl restart kansa")
	p.ready()
	p.publish("acme", 5)
	p.sealed("acme", before+10, identity)
	p.stored(before + 10)
	p.until("all accounts agree", func() (bool, any) {
		out, err := p.try("kansa repair")
		return err == nil && strings.Contains(out, "All accounts agree."), out
	})
	p.owned("/var/lib/kansa")
}

// unit does what systemd does with the service: it runs it as its own user, and starts it again when it ends by itself.
type unit struct {
	p   *procedure
	log string

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{} // of cmd
}

// mostStarts bounds the starts of a service that ends by itself.
const mostStarts = 20

func (u *unit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/start/kansa":
		u.start()
	case "/stop/kansa":
		u.stop()
	case "/restart/kansa":
		u.stop()
		u.start()
	default:
		http.NotFound(w, r)
	}
}

func (u *unit) start() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.cmd == nil {
		u.run(mostStarts)
	}
}

// run starts the process; mu is held.
func (u *unit) run(starts int) {
	log, err := os.OpenFile(u.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		u.p.Error(err)
		return
	}
	cmd := exec.Command(u.p.at("/usr/bin/kansa"), "up", "--config", u.p.at("/etc/kansa/kansa.yaml")) //nolint:gosec // the test's own
	cmd.Dir, cmd.Stdout, cmd.Stderr = u.p.at("/var/lib/kansa"), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: serviceUser, Gid: serviceUser}}
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		u.p.Error(err)
		return
	}
	ended := make(chan struct{})
	u.cmd, u.ended = cmd, ended
	go func() {
		_ = cmd.Wait() // however it ended
		close(ended)
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.cmd == cmd && starts > 0 {
			u.run(starts - 1)
		}
	}()
}

// stop asks the process to end, and waits until it has.
func (u *unit) stop() {
	u.mu.Lock()
	cmd, ended := u.cmd, u.ended
	u.cmd = nil
	u.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	limit := time.NewTimer(45 * time.Second) // TimeoutStopSec
	defer limit.Stop()
	select {
	case <-ended:
	case <-limit.C:
		_ = cmd.Process.Kill()
		<-ended
		u.p.Error("the service did not stop within 45s of SIGTERM")
	}
	if u.p.Failed() {
		log, _ := os.ReadFile(u.log)
		u.p.Logf("the service's log:\n%s", log)
	}
}

func testBackup(p *procedure) {
	p.install("")
	p.sh(p.place("install -d -m 0700 -o kansa -g kansa /etc/kansa/keys; kansa key generate partitions -o /etc/kansa/keys/partitions.key"))
	encrypted, identity := "encryption: {partitions: {file: /etc/kansa/keys/partitions.key}}\n", p.place("-i /etc/kansa/keys/partitions.key")
	p.configure(encrypted)
	p.sh("systemctl restart kansa")
	p.ready()
	p.publish("acme", 50)
	p.sealed("acme", 50, identity)

	p.do("systemctl stop kansa")
	today := time.Now().Format(time.DateOnly)
	for _, name := range []string{"kansa-" + today + ".tar", "kansa-etc-" + today + ".tar"} {
		info, err := os.Stat(filepath.Join(p.home, name))
		p.must(err)
		if info.Mode().Perm() != 0o600 {
			p.Errorf("%s has mode %v: it has secrets", name, info.Mode())
		}
	}
	p.ready()
	p.publish("acme", 7) // not in the backup
	p.unit.stop()
	// The machine is lost.
	p.sh(p.place("rm -rf /var/lib/kansa /etc/kansa; install -d -m 0700 -o kansa -g kansa /var/lib/kansa; install -d /etc/kansa"))
	out := p.do("systemctl start kansa", "2026-11-22", today, "--key seal.pub", "--key seal.pub "+identity)
	for _, want := range []string{"VERIFIED", "All accounts agree."} {
		if !strings.Contains(out, want) {
			p.Errorf("the restoration did not print %q:\n%s", want, out)
		}
	}
	p.stored(50)
	p.owned("/etc/kansa/keys")
	p.well(50, identity)
}

func testKeyRotation(p *procedure) {
	p.install("")
	p.publish("acme", 5)
	p.sealed("acme", 5, "")
	old, err := os.ReadFile(p.at("/var/lib/kansa/seal.pub"))
	p.must(err)
	p.must(os.WriteFile(filepath.Join(p.home, "old-seal.pub"), old, 0o600))
	if out := p.do("key rotate"); strings.Count(out, string(old)) < 1 || !strings.Contains(out, "VERIFIED") {
		p.Errorf("the rotation printed:\n%s", out)
	}
	p.well(5, "")
	p.sh(p.place("kansa verify /var/lib/kansa/partitions --key old-seal.pub"))

	p.do("key generate partitions")
	p.owned("/etc/kansa/keys")
	keys := "encryption:\n  partitions: {file: /etc/kansa/keys/partitions.key}\n"
	identity := p.place("-i /etc/kansa/keys/partitions.key")
	p.configure(keys)
	p.do("key encrypt")
	p.ready()
	p.sh("kansa key show -c " + p.at("/etc/kansa/kansa.yaml"))
	p.owned("/var/lib/kansa")
	p.do("key generate streams")
	p.owned("/etc/kansa/keys")
	keys += "  clickhouse: {file: /etc/kansa/keys/clickhouse.key}\n  streams: {file: /etc/kansa/keys/streams.key}\n"
	p.configure(keys)
	p.sh("systemctl restart kansa")
	p.ready()
	p.well(15, identity)
}

func testLegalHold(p *procedure) {
	p.install("retention: {every: 1s}\nrollup: {hour: 1s}\n")
	for i, organization := range []string{"acme", "globex", "acme", "globex"} {
		p.publish(organization, 5)
		p.sealed(organization, 5*(i/2+1), "")
	}
	p.do("--hold")
	// Both decide to keep next to nothing; one is under the hold.
	p.sh("kansa organization set globex --retention-bytes 1; kansa organization set acme --retention-bytes 1 --retention-days 1")
	files := func(organization string) int {
		all, err := filepath.Glob(p.at("/var/lib/kansa/partitions/" + organization + "/activity/*/*/*/*.csv.gz"))
		p.must(err)
		return len(all)
	}
	p.until("globex's partitions and events are removed", func() (bool, any) {
		n, err := p.query("SELECT toString(count()) FROM audit_events WHERE source = 's' AND organization = 'globex'")
		return n == "0" && files("globex") == 0, fmt.Sprint(n, err)
	})
	for _, table := range []string{"audit_events", "audit_event_counts"} {
		p.until("nothing of acme expires in "+table, func() (bool, any) {
			at, err := p.query("SELECT toString(min(expires_at)) FROM " + table + " WHERE organization = 'acme'")
			return strings.HasPrefix(at, "2106"), fmt.Sprint(at, err)
		})
	}
	p.publish("acme", 5)
	p.sealed("acme", 15, "")
	p.stored(15)
	if at, err := p.query("SELECT toString(min(expires_at)) FROM audit_events WHERE organization = 'acme'"); !strings.HasPrefix(at, "2106") {
		p.Errorf("an event that came under the hold expires at %s, %v", at, err)
	}
	if out := p.sh("kansa organization show acme"); !strings.Contains(out, "case 17") {
		p.Errorf("the hold is not shown:\n%s", out)
	}
	if _, err := p.try("kansa replay --yes"); err != nil { // the messages of acme are all there still
		p.Error(err)
	}
	p.ready()
	p.stored(15)
	p.do("--release-hold")
	p.until("acme's partitions are removed", func() (bool, any) { return files("acme") == 0, files("acme") })
}

func testTrailOff(p *procedure) {
	p.install("")
	p.sh("kansa trail off acme access --reason 'a test'")
	out := p.do("kansa trail on acme access")
	if !strings.Contains(out, "a test") || !strings.Contains(out, "kansa_trails_off") {
		p.Errorf("it printed:\n%s", out)
	}
	p.until("events of the trail are recorded again", func() (bool, any) {
		p.publishTo("acme", "access", 1)
		n, err := p.query("SELECT toString(count()) FROM audit_events WHERE source = 's' AND trail = 'access'")
		return err == nil && n != "0", fmt.Sprint(n, err)
	})
}

func testLostClickHouse(p *procedure) {
	p.install("")
	p.publish("acme", 20)
	p.sealed("acme", 20, "")
	p.do("kansa replay --yes")
	p.until("the writers have new consumers", func() (bool, any) {
		out, err := p.try("kansa shards")
		return err == nil && strings.Contains(out, "-r1"), out
	})
	p.ready()
	p.stored(20)
	p.well(20, "")
}

func testLostTable(p *procedure) {
	p.install("")
	p.publish("acme", 20)
	p.sealed("acme", 20, "")
	p.stored(20)
	_, err := p.query("TRUNCATE TABLE audit_events")
	p.must(err)
	p.do("kansa restore --dry-run")
	p.stored(20)
	p.well(20, "")
}

func testChecks(p *procedure) {
	p.install("")
	p.publish("acme", 5)
	p.sealed("acme", 5, "")
	p.do("kansa doctor")
	p.do("kansa repair --streams")
}

func testLag(p *procedure) {
	p.install("")
	p.publish("acme", 5)
	p.stored(5)
	p.must(os.Chmod(p.at("/var/lib/kansa"), 0o707)) //nolint:gosec // a mistake, of which the log has a warning
	p.sh("systemctl restart kansa")
	p.ready()
	if out := p.do("journalctl"); !strings.Contains(out, "every user of this machine can replace") {
		p.Errorf("it printed:\n%s", out)
	}
}

func testFullDisk(p *procedure) {
	p.install("")
	if out := p.do("df -h"); !strings.Contains(out, "kansa_stream_bytes") {
		p.Errorf("it printed:\n%s", out)
	}
}

func testUpgrade(p *procedure) {
	p.install("")
	p.publish("acme", 5)
	p.sealed("acme", 5, "")
	dir := filepath.Join(p.home, "dist", "kansa-NEW-linux-amd64")
	p.sh("mkdir -p " + dir + "/bin; cp " + p.at("/usr/bin/kansa") + " " + dir + "/bin/kansa; echo '# new' >> " + dir + "/bin/kansa; echo > " + dir + "/bin/libchdb.so; " +
		"cd " + dir + "; sha256sum bin/* > SHA256SUMS; cd ..; tar -czf ../kansa-NEW-linux-amd64.tar.gz kansa-NEW-linux-amd64; rm -r " + dir)
	p.do("systemctl restart kansa")
	p.says("# new", "cat "+p.at("/usr/bin/kansa"))
	p.well(5, "")
}

func testDisagreement(p *procedure) {
	const hour = 10 * time.Second
	p.install("rollup: {hour: 10s}\n")
	p.publish("acme", 5)
	p.stored(5)
	p.until("an hour has just begun", func() (bool, any) {
		now := time.Now()
		return now.Sub(now.Truncate(hour)) < hour/3, now
	})
	p.publish("acme", 20)
	p.stored(25)
	id, err := p.query("SELECT toString(id) FROM audit_events WHERE source = 's' ORDER BY recorded_at DESC LIMIT 1")
	p.must(err)
	_, err = p.query("DELETE FROM audit_events WHERE id = '" + id + "'")
	p.must(err)
	p.until("the hour cannot be sealed", func() (bool, any) {
		out, err := p.try("kansa repair")
		return strings.Contains(out, "can not be sealed") && strings.Contains(out, "missing"), fmt.Sprint(out, err)
	})
	if out := p.do("kansa repair --json"); !strings.Contains(out, "can not be sealed") {
		p.Errorf("it printed:\n%s", out)
	}
	out, err := p.try(p.take("--accept"))
	if err == nil && !strings.Contains(out, "still") {
		p.Errorf("messages that the stream has were accepted as lost: %s", out)
	}
	if out := p.do("--fix --replace"); !strings.Contains(out, "restored 20 events from the stream") && !strings.Contains(out, "restored") {
		p.Errorf("it printed:\n%s", out)
	}
	p.sealed("acme", 25, "")
	p.well(25, "")
}

func testDeadLetters(p *procedure) {
	p.install("")
	client, err := broker.Connect(p.Context(), broker.Options{URL: fmt.Sprintf("nats://127.0.0.1:%d", p.nats), Name: "test", TokenFile: p.at("/var/lib/kansa/operator.key")})
	p.must(err)
	defer client.Close()
	event := func(n int, action string) string {
		return fmt.Sprintf(`{"occurred_at":"2026-11-22T04:05:06Z","organization":"acme","trail":"activity","source":"s","event":"e","action":%q,"description":"%d"}`, action, n)
	}
	// letter publishes what becomes a dead letter, and returns its number.
	letter := func(subject, body string) (seq string) {
		ack, err := client.JS.Publish(p.Context(), subject, []byte(body))
		p.must(err)
		p.until("the message is a dead letter", func() (bool, any) {
			err := deadletter.Each(p.Context(), client.JS, "", func(l deadletter.Letter) bool {
				if l.StreamSeq == ack.Sequence {
					seq = fmt.Sprint(l.Seq)
				}
				return seq == ""
			})
			return seq != "", err
		})
		return seq
	}
	const good, bad = "audit.events.acme.activity", "audit.events.acme.Activity" // no trail of that name
	first := letter(good, event(1, "DO"))
	second := letter(bad, event(2, "do"))
	p.must(os.WriteFile(filepath.Join(p.home, "corrected.json"), []byte(event(1, "do")), 0o600))
	before := map[string]func(){
		"--like": func() { letter(good, event(3, "READ")); letter(good, event(4, "READ")) },
		"--all": func() { // another event under a known id, which is stored when the reason is gone
			twice := func(n int) string {
				return strings.Replace(event(n, "do"), "{", `{"id":"7d0f9a52-3d5c-4c9b-9d5e-0f4b6c1f2a01",`, 1)
			}
			_, err := client.JS.Publish(p.Context(), good, []byte(twice(5)))
			p.must(err)
			letter(good, twice(6))
			p.configure("writer: {ack_wait: 4s, insert_timeout: 1s, id_window: 0s}\n")
			p.sh("systemctl restart kansa")
			p.ready()
		},
	}
	lines := strings.Split(p.take("kansa deadletter", "replay 17", "replay "+first, "replay 18", "replay "+second), "\n")
	for _, line := range lines {
		for word, prepare := range before {
			if strings.Contains(line, word) {
				prepare()
			}
		}
		if strings.Contains(line, "discard 19") {
			line = strings.Replace(line, "19", letter(good, `null`), 1)
		}
		p.sh(line)
	}
	p.stored(6)
	if n, err := deadletter.Count(p.Context(), client.JS); n != 0 || err != nil {
		p.Errorf("%d letters are left, %v", n, err)
	}
	p.owned("/var/lib/kansa")
}

func testDeliveries(p *procedure) {
	p.install("")
	server, err := sshd.Start(p.Context(), sshd.Options{Dir: p.at("/root"), User: "kansa", Password: "open sesame"})
	p.must(err)
	defer server.Close()
	p.publish("acme", 5)
	p.sealed("acme", 5, "")
	host, port, _ := strings.Cut(server.Addr(), ":")
	p.write("/root/password", "wrong\n", 0o600)
	p.sh(fmt.Sprintf("kansa destination add acme/nightly --force -s sftp.host=%s -s sftp.port=%s -s sftp.user=kansa -s sftp.password=@password -s sftp.host_keys=[%s]", host, port, server.HostKeyFingerprint()))
	to := time.Now().Add(-2 * time.Second).UTC().Truncate(time.Second)
	from := to.Add(-time.Hour)
	begin := []string{"2026-11-21", from.Format(time.RFC3339), "2026-11-22", to.Format(time.RFC3339)}
	start := p.take("--wait", begin...)
	if out, err := p.try(start); err == nil {
		p.Errorf("a delivery with a wrong password succeeded:\n%s", out)
	}
	var x struct{ ID string }
	p.must(json.Unmarshal([]byte(strings.SplitN(p.sh("kansa export list --json"), "\n", 2)[0]), &x))
	if out := p.do("kansa export list", "status ID", "status "+x.ID); !strings.Contains(out, "failed") {
		p.Errorf("it printed:\n%s", out)
	}
	p.write("/root/password", "open sesame\n", 0o600)
	p.sh("kansa destination edit acme/nightly -s sftp.password=@password")
	p.says("done", start)
}

func testMove(p *procedure) {
	p.install("")
	other := &procedure{T: p.T, heading: p.heading}
	other.install("")
	p.publish("acme", 20)
	p.sealed("acme", 20, "")
	other.publish("acme", 3)
	other.stored(3)
	login := func(m *procedure) string {
		var c struct{ Username, Password string }
		text, err := os.ReadFile(m.at("/var/lib/kansa/clickhouse/credentials.json"))
		p.must(err)
		p.must(json.Unmarshal(text, &c))
		return c.Username + ":" + c.Password
	}
	for _, line := range strings.Split(strings.ReplaceAll(p.take("FORMAT Native"), "AS\n", "AS "), "\n") {
		m, host := other, "NEW:8123"
		if strings.Contains(line, "OLD:8123") {
			m, host = p, "OLD:8123"
		}
		p.sh(strings.NewReplacer("USER:PASSWORD", login(m), host, fmt.Sprintf("127.0.0.1:%d", m.clickhouse)).Replace(line))
	}
	const sums = "SELECT concat(toString(count()), ' ', toString(sum(cityHash64(*)))) FROM "
	old, err := p.query(sums + "audit_events WHERE organization = 'acme'")
	p.must(err)
	moved, err := other.query(sums + "moved.audit_events WHERE organization = 'acme'")
	p.must(err)
	if old != moved || !strings.HasPrefix(old, "2") {
		p.Errorf("%s were there, %s are here", old, moved)
	}
	all, err := other.query("SELECT toString(count()) FROM all_events WHERE organization = 'acme' AND source = 's'")
	if err != nil || all != "23" {
		p.Errorf("the view of both has %s events of acme, %v; want 23", all, err)
	}
}
