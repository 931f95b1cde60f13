//go:build linux

package chaos

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

// TestNothingIsLetGoBeforeItsSuccessorIsSynced watches the system calls of a whole system. A message of AUDIT is
// acknowledged, and may be removed from then on, when the files of the part of audit_events that it went into are
// synced, and then, under its last name, the part's directory: the engine leaves it to the file system's journal
// to have that name on disk with it. (The hourly counts of the charts are not synced.) A partition is announced, and the hour's tick taken from HOURS,
// when its file and its manifest are synced under their names.
func TestNothingIsLetGoBeforeItsSuccessorIsSynced(t *testing.T) {
	t.Parallel()
	port, err := brokertest.FreePort(rand.New(rand.NewPCG(uint64(os.Getpid()), 1)).IntN)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := config.Default()
	c.DataDir, c.NATS.Port, c.API.Listen, c.Rollup.Hour = filepath.Join(dir, "data"), port, "127.0.0.1:0", hour
	text, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "kansa.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	end, trace := traced(t, fmt.Sprintf("%s=%s|writer,rollup", envRoles, file))
	client, err := connect(t, fmt.Sprintf("nats://127.0.0.1:%d", port), filepath.Join(c.DataDir, pipeline.OperatorKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	const messages = 5
	publishOneByOne(t, client, messages)
	pipelinetest.Until(t, time.Minute, func() (bool, any) { // all of them are in partitions
		s, err := client.JS.Stream(t.Context(), broker.StreamPartitions)
		if err != nil {
			return false, err
		}
		info, err := client.JS.Stream(t.Context(), broker.StreamAudit)
		if err != nil {
			return false, err
		}
		at := s.CachedInfo().State
		return at.Msgs > 0 && at.LastTime.After(info.CachedInfo().State.LastTime.Add(2*hour)), at
	})
	end()
	w := &orderWatcher{
		t: t, tables: map[string]bool{}, dirty: map[string]bool{}, parts: map[string]bool{}, synced: map[string]bool{}, announced: map[string]bool{},
	}
	watch(t, trace, w)
	if w.acks < messages || len(w.parts) < messages || len(w.announced) == 0 || w.files == 0 {
		t.Errorf("the trace has %d acknowledgements, %d parts, %d partitions and %d of them with a file: it shows nothing",
			w.acks, len(w.parts), len(w.announced), w.files)
	}
}

// publishOneByOne publishes each message when the one before it is acknowledged by the writer, so that one
// insert is under way at a time.
func publishOneByOne(t *testing.T, client *broker.Client, messages uint64) {
	t.Helper()
	floor := func() (uint64, error) {
		c, err := client.JS.Consumer(t.Context(), broker.StreamAudit, broker.ConsumerWriter)
		if err != nil {
			return 0, err
		}
		return c.CachedInfo().AckFloor.Stream, nil
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) { // it has been set up
		_, err := floor()
		return err == nil, err
	})
	p, err := producers.New(client.JS, producers.Config{Logger: pipelinetest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	events := sample.New(1, nil)
	for range messages {
		e := events.Next()
		e.Organization, e.Trail = "acme", schema.Activity
		if err := p.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		// The stream also has what the system records of itself, such as this test's login.
		stream, err := client.JS.Stream(t.Context(), broker.StreamAudit)
		if err != nil {
			t.Fatal(err)
		}
		last := stream.CachedInfo().State.LastSeq
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			at, err := floor()
			return at >= last, []any{at, last, err}
		})
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// orderWatcher knows what of parts is not synced, and what of partitions is.
type orderWatcher struct {
	t         *testing.T
	tables    map[string]bool // directories that parts of audit_events lie in
	dirty     map[string]bool // files and directories of parts
	parts     map[string]bool // that were inserted into audit_events, under their names
	synced    map[string]bool // files of partitions, before they have their names, and directories
	written   []string        // CSVs of partitions
	acks      int
	announced map[string]bool
	files     int
}

var (
	partFile     = regexp.MustCompile(`/store/[^/]+/[^/]+/tmp_insert_[^/]+/`)
	renamedTo    = regexp.MustCompile(`^, (?:AT_FDCWD\S*, )?"(.*?)"`)
	writerAck    = regexp.MustCompile(`PUB \$JS\.ACK\.` + broker.StreamAudit + `\.` + broker.ConsumerWriter + `\.`)
	announcement = regexp.MustCompile(`PUB ` + schema.SubjectPartitions + `\.[^ ]+ .*?Nats-Msg-Id: (\S+?)\\r`)
)

func (w *orderWatcher) begins(_ string, c *call) {
	if !c.sends() {
		return
	}
	if n := len(writerAck.FindAllString(c.text, -1)); n > 0 {
		w.acks += n
		for at := range w.dirty {
			if w.parts[at] || w.parts[path.Dir(at)] {
				w.t.Errorf("a message was acknowledged, and %s was not synced", at)
			}
		}
	}
	for _, m := range announcement.FindAllStringSubmatch(c.text, -1) {
		w.announce(m[1])
	}
}

// announce looks at what has to be on disk by now. Files are synced under temporary names.
func (w *orderWatcher) announce(partition string) {
	w.announced[partition] = true
	suffixes := []string{schema.ManifestSuffix}
	if slices.ContainsFunc(w.written, func(p string) bool { return strings.Contains(p, partition+schema.CSVSuffix+".") }) {
		suffixes = append(suffixes, schema.CSVSuffix)
		w.files++
	}
	has := func(what func(string) bool) bool {
		for p := range w.synced {
			if what(p) {
				return true
			}
		}
		return false
	}
	for _, suffix := range suffixes {
		if !has(func(p string) bool { return strings.Contains(p, partition+suffix+".") }) {
			w.t.Errorf("partition %s was announced, and its %s was not synced", partition, suffix)
		}
	}
	if !has(func(p string) bool { return strings.HasSuffix(p, path.Dir(partition)) }) {
		w.t.Errorf("partition %s was announced, and the names in its directory were not synced", partition)
	}
}

func (w *orderWatcher) ends(_ string, c *call) {
	switch {
	case c.syncs():
		delete(w.dirty, c.path)
		w.synced[c.path] = true
	case strings.HasPrefix(c.name, "rename"):
		to := renamedTo.FindStringSubmatch(c.text)
		from := strings.TrimSuffix(c.path, "/")
		if to == nil || !partFile.MatchString(from+"/") {
			return
		}
		part := strings.TrimSuffix(to[1], "/")
		if !w.tables[path.Dir(part)] {
			return
		}
		w.parts[part], w.dirty[part] = true, true
		for file := range maps.Clone(w.dirty) {
			if path.Dir(file) == from {
				delete(w.dirty, file)
				w.dirty[path.Join(part, path.Base(file))] = true
			}
		}
	case partFile.MatchString(c.path):
		w.dirty[c.path] = true
		if path.Base(c.path) == "minmax_recorded_at.idx" { // of the only table that is partitioned by it
			w.tables[path.Dir(path.Dir(c.path))] = true
		}
	case strings.Contains(c.path, schema.CSVSuffix+"."):
		w.written = append(w.written, c.path)
	}
}
