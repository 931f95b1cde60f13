//go:build linux

package chaos

import (
	"archive/zip"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// seen is what was found so far and must not change any more.
type seen struct {
	files     map[string]inode // archives at the SSH server
	delivered map[string]bool  // exports that are done
	mails     int              // looked at
	mailed    map[string]int   // by export
	links     int              // downloaded
}

type inode struct {
	number uint64
	size   int64
	change time.Time
}

func newSeen() *seen {
	return &seen{files: map[string]inode{}, delivered: map[string]bool{}, mailed: map[string]int{}}
}

// settled waits until what was recorded up to now is rolled up and delivered, and returns the end of the period
// that now is in. Deliveries are events too, so something is always on its way.
func (s *stack) settled(ctx context.Context, limit time.Duration, was *seen) (end time.Time, err error) {
	end = time.Now().UTC().Truncate(period).Add(period)
	return end, until(ctx, limit, func() error { return s.waitsFor(ctx, end, was) })
}

// waitsFor says what is not yet as it will be. An hour is rolled up when the writer has stored all of it.
func (s *stack) waitsFor(ctx context.Context, end time.Time, was *seen) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	next, err := s.progress.Next(ctx)
	if err != nil {
		return err
	}
	if next.Before(end) {
		return fmt.Errorf("rolled up until %s, not %s", next, end)
	}
	for name, org := range destinations() {
		for from := s.since; from.Before(end); from = from.Add(period) {
			id := exporter.ScheduledID(org, name, from)
			if was.delivered[id] {
				continue
			}
			e, found, err := s.states.Get(ctx, id)
			if err != nil {
				return err
			}
			if !found || e.State != exporter.Done {
				return fmt.Errorf("export %s: found %t, state %q, attempts %d, %s", id, found, e.State, e.Attempts, e.Error)
			}
			was.delivered[id] = true
		}
	}
	return nil
}

func destinations() map[string]string {
	all := maps.Clone(sftpDestinations)
	maps.Copy(all, mailDestinations)
	return all
}

// row is where an event is stored.
type row struct {
	id           string
	organization string
	trail        schema.Trail
	source       string
	recorded     time.Time
	seq          uint64
	index        uint32
}

func (r *row) key() string {
	return schema.Partition{Organization: r.organization, Trail: r.trail, Hour: r.recorded.Truncate(hour), Length: hour}.CSVKey()
}

// check holds everything against what was promised.
func (s *stack) check(ctx context.Context, a *account, end time.Time, was *seen) error {
	rows, err := s.rows(ctx)
	if err != nil {
		return err
	}
	var errs []error
	fault := func(format string, v ...any) { errs = append(errs, fmt.Errorf(format, v...)) }

	// Acknowledged ⊆ stored ⊆ published, each once.
	stored := make(map[uuid.UUID]*row, len(rows))
	for i := range rows {
		r := &rows[i]
		id, err := uuid.Parse(r.id)
		if err != nil {
			return err
		}
		if other := stored[id]; other != nil {
			fault("stored twice: %s of message %d.%d at %s and %d.%d at %s", id, other.seq, other.index, other.recorded, r.seq, r.index, r.recorded)
		}
		stored[id] = r
		if _, ok := a.acked[id]; !ok && r.source != owntrail.Source {
			fault("stored and never published: %+v", *r)
		}
	}
	for id, acked := range a.acked {
		if acked && stored[id] == nil {
			fault("acknowledged and not stored: %s", id)
		}
	}

	// CSV = stored, and what is signed verifies.
	key, err := s.key()
	if err != nil {
		return err
	}
	errs = append(errs, s.checkStore(ctx, key, rows, end)...)
	errs = append(errs, s.checkArchives(ctx, key, rows, end, was)...)
	errs = append(errs, s.checkMails(ctx, key, rows, end, was)...)

	// Nobody was alarmed, nothing was rejected.
	blocked, err := s.progress.Blocked(ctx, hour)
	if err != nil || len(blocked) > 0 {
		fault("blocked: %v %v", blocked, err)
	}
	if dead, err := s.client.JS.Stream(ctx, broker.StreamDeadLetter); err != nil || dead.CachedInfo().State.Msgs > 0 {
		fault("there are dead letters, or %v", err)
	}
	for _, p := range s.procs {
		errs = append(errs, faultsIn(p.path))
	}
	if s.app != nil {
		errs = append(errs, faultsIn(s.app.log.Name()))
	}
	if len(errs) > 20 {
		errs = append(errs[:20], fmt.Errorf("and %d more", len(errs)-20))
	}
	return errors.Join(errs...)
}

func (s *stack) rows(ctx context.Context) (rows []row, err error) {
	found, err := s.table.Conn().Query(ctx, "SELECT toString(id), organization, trail, source, recorded_at, stream_seq, batch_index FROM audit_events ORDER BY stream_seq, batch_index")
	if err != nil {
		return nil, fmt.Errorf("read the table: %w", err)
	}
	defer found.Close()
	for found.Next() {
		var r row
		var trail string
		if err := found.Scan(&r.id, &r.organization, &trail, &r.source, &r.recorded, &r.seq, &r.index); err != nil {
			return nil, fmt.Errorf("read the table: %w", err)
		}
		r.trail, r.recorded = schema.Trail(trail), r.recorded.UTC()
		rows = append(rows, r)
	}
	return rows, found.Err()
}

func (s *stack) checkStore(ctx context.Context, key string, rows []row, end time.Time) (errs []error) {
	// An hour may be added while it is read; then it is read again.
	err := until(ctx, 5*hour, func() error {
		report, err := verify.Path(ctx, s.parts, verify.Options{Key: key, FromStart: true})
		if err != nil {
			return err
		}
		var faults []error
		for _, f := range report.Faults {
			faults = append(faults, fmt.Errorf("partition store: %w", f))
		}
		return errors.Join(faults...)
	})
	if err != nil {
		return []error{err}
	}
	want := map[string][]string{}
	for i := range rows {
		if rows[i].recorded.Before(end) {
			want[rows[i].key()] = append(want[rows[i].key()], rows[i].id)
		}
	}
	got := map[string][]string{}
	err = filepath.WalkDir(s.parts, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, schema.CSVSuffix) {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		name, err := filepath.Rel(s.parts, path)
		if err != nil {
			return err
		}
		got[filepath.ToSlash(name)], err = idsOf(z)
		return err
	})
	if err != nil {
		return []error{err}
	}
	for name := range got {
		if want[name] == nil && !later(name, end) {
			errs = append(errs, fmt.Errorf("partition %s has %d events, the table none", name, len(got[name])))
		}
	}
	for name, ids := range want {
		if !same(got[name], ids) {
			errs = append(errs, fmt.Errorf("partition %s has %d events, the table %d, or others", name, len(got[name]), len(ids)))
		}
	}
	return errs
}

// later tells whether a partition is of an hour that was rolled up while we looked.
func later(key string, end time.Time) bool {
	_, at, _ := strings.Cut(strings.TrimSuffix(key, schema.CSVSuffix), "/") // organization
	_, at, _ = strings.Cut(at, "/")                                         // trail
	t, err := time.Parse("2006/01/02/15-04-05", at)
	return err == nil && !t.Before(end)
}

// idsOf returns the ids of a CSV.
func idsOf(r io.Reader) ([]string, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	records, err := pipelinetest.ParseCSV(string(text))
	if err != nil {
		return nil, err
	}
	column := slices.Index(codec.CSVColumns, "id")
	ids := make([]string, 0, len(records))
	for _, r := range records[1:] {
		ids = append(ids, r[column])
	}
	return ids, nil
}

// same compares without regard to the order.
func same(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// expected are the archives of the periods before end: the ids of each by its name.
func (s *stack) expected(to map[string]string, rows []row, end time.Time) map[string][]string {
	all := map[string][]string{}
	for name, org := range to {
		for from := s.since; from.Before(end); from = from.Add(period) {
			request := exporter.Request{ID: exporter.ScheduledID(org, name, from), Organization: org, Trails: schema.Trails, From: from, To: from.Add(period)}
			ids := []string{}
			for i := range rows {
				if r := &rows[i]; r.organization == org && !r.recorded.Before(from) && r.recorded.Before(request.To) {
					ids = append(ids, r.id)
				}
			}
			all[request.FileName()] = ids
		}
	}
	return all
}

// checkArchives looks at what arrived at the SSH server: every archive once, whole, and nothing else.
func (s *stack) checkArchives(ctx context.Context, key string, rows []row, end time.Time, was *seen) (errs []error) {
	fault := func(format string, v ...any) { errs = append(errs, fmt.Errorf(format, v...)) }
	want := s.expected(sftpDestinations, rows, end)
	later := s.expected(sftpDestinations, nil, end.Add(time.Hour)) // delivered while we look
	entries, err := os.ReadDir(s.archives)
	if err != nil {
		return []error{err}
	}
	here := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		if name == ".ballast" || strings.HasPrefix(name, ".") && strings.HasSuffix(name, ".part") {
			continue
		}
		ids, due := want[name]
		if _, ever := later[name]; !ever {
			fault("SFTP: %s is no archive that was asked for", name)
			continue
		}
		here[name] = true
		info, err := e.Info()
		if err != nil {
			return []error{err}
		}
		at := inode{info.Sys().(*syscall.Stat_t).Ino, info.Size(), info.ModTime()}
		if before, ok := was.files[name]; ok {
			if before != at {
				fault("SFTP: %s was delivered again: %v, before %v", name, at, before)
			}
			continue
		}
		if !due {
			continue // the next round looks at it
		}
		if err := checkArchive(ctx, filepath.Join(s.archives, name), key, ids); err != nil {
			fault("SFTP: %w", err)
		}
		was.files[name] = at
	}
	for name := range want {
		if !here[name] {
			fault("SFTP: %s is missing", name)
		}
	}
	return errs
}

func checkArchive(ctx context.Context, path, key string, want []string) error {
	report, err := verify.Path(ctx, path, verify.Options{Key: key})
	if err != nil {
		return err
	}
	if !report.OK {
		return fmt.Errorf("%s: %w", path, report.Faults[0])
	}
	z, err := zip.OpenReader(path)
	if err != nil {
		return err
	}
	defer z.Close()
	var got []string
	for _, f := range z.File {
		if !strings.HasSuffix(f.Name, ".csv") {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return err
		}
		ids, err := idsOf(r)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", path, f.Name, err)
		}
		got = append(got, ids...)
	}
	if !same(got, want) {
		return fmt.Errorf("%s has %d events, the table %d, or others", path, len(got), len(want))
	}
	return nil
}

var linkPattern = regexp.MustCompile(`https?://\S+/download/\S+`)

// checkMails: each archive was mailed, and the newest link of those that are new leads to it. That a mail whose
// answer was lost is sent again is as it must be.
func (s *stack) checkMails(ctx context.Context, key string, rows []row, end time.Time, was *seen) (errs []error) {
	fault := func(format string, v ...any) { errs = append(errs, fmt.Errorf(format, v...)) }
	mails := s.mails.Mails()
	newest := map[string]string{} // file: link
	for _, m := range mails[was.mails:] {
		parts := strings.Split(strings.TrimPrefix(m.Header.Get("Message-Id"), "<"), ".") // those of the id come first
		was.mailed[strings.Join(parts[:min(3, len(parts))], ".")]++
		link := linkPattern.FindString(m.Text)
		newest[link[strings.LastIndexByte(link, '/')+1:]] = link
	}
	was.mails = len(mails)
	for name, org := range mailDestinations {
		for from := s.since; from.Before(end); from = from.Add(period) {
			if id := exporter.ScheduledID(org, name, from); was.mailed[id] == 0 {
				fault("mail: %s never came", id)
			}
		}
	}
	want := s.expected(mailDestinations, rows, end)
	for name, link := range newest {
		ids, due := want[name]
		if !due {
			continue
		}
		path, err := s.download(ctx, name, link)
		if err == nil {
			err = checkArchive(ctx, path, key, ids)
			_ = os.Remove(path)
		}
		if err != nil {
			fault("mail: %s: %w", name, err)
		}
		was.links++
	}
	return errs
}

func (s *stack) download(ctx context.Context, name, link string) (path string, err error) {
	path = filepath.Join(s.dir, "mail", name)
	return path, until(ctx, 10*time.Second, func() error { return fetch(ctx, link, path) }) // the API may be starting
}

func fetch(ctx context.Context, link, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, link, http.NoBody)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("download: %s", res.Status)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, res.Body)
	return errors.Join(err, f.Close())
}
