package demo

import (
	"archive/zip"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
)

// ids is an order-free digest of the ids of events, for each organization: two sets with the same count
// and sum are, but for a chance of one in 2^128, the same.
type ids map[string]*idSum

type idSum struct {
	n        uint64
	high, lo uint64
}

func newIDs() ids { return ids{} }

func (s ids) add(organization string, id uuid.UUID) {
	one := s[organization]
	if one == nil {
		one = new(idSum)
		s[organization] = one
	}
	h := sha256.Sum256(id[:])
	one.n++
	for i := range 8 {
		one.high += uint64(h[i]) << (8 * i)
		one.lo += uint64(h[8+i]) << (8 * i)
	}
}

func (s ids) equal(o ids) bool {
	if len(s) != len(o) {
		return false
	}
	for k, v := range s {
		if o[k] == nil || *o[k] != *v {
			return false
		}
	}
	return true
}

func (s ids) rows() (n uint64) {
	for _, v := range s {
		n += v.n
	}
	return n
}

// count looks at every place where the events should be, and compares.
func (d *Demo) count(ctx context.Context, end time.Time, sent ids, r *Result) error {
	d.o.Say("counting what arrived", 0, 0)
	// What the system recorded of itself meanwhile is not the demo's.
	err := d.System.Store.Conn().QueryRow(ctx, "SELECT count(), uniqExact(id) FROM audit_events WHERE has(?, organization) AND source != ?",
		d.o.Input.Organizations, owntrail.Source).
		Scan(&r.Stored, &r.Distinct)
	if err != nil {
		return fmt.Errorf("count what is stored: %w", err)
	}
	dead, err := deadletter.Count(ctx, d.System.Client.JS)
	if err != nil {
		return err
	}
	r.Rejected = dead + d.o.Input.Refused
	if err := d.countPartitions(ctx, end, r); err != nil {
		return err
	}
	link := newIDs()
	for _, file := range r.Archives {
		fault, err := d.readArchive(ctx, file, link)
		if err != nil {
			return err
		}
		r.Fault = cmp.Or(r.Fault, fault)
	}
	r.LinkRows = link.rows()
	uploads, err := filepath.Glob(filepath.Join(d.SFTPDir(), "kansa_*.zip")) // one of a later period may be on its way
	if err != nil {
		return fmt.Errorf("list what was uploaded: %w", err)
	}
	uploaded := newIDs()
	for _, file := range uploads {
		fault, err := d.readArchive(ctx, file, uploaded)
		if err != nil {
			return err
		}
		r.Fault = cmp.Or(r.Fault, fault)
		r.Archives = append(r.Archives, file)
	}
	r.SFTPRows = uploaded.rows()
	r.Fault = cmp.Or(r.Fault, r.compare())
	switch {
	case r.Fault != "":
	case !sent.equal(link):
		r.Fault = "the events in the archives that were downloaded are not the ones that were published"
	case !sent.equal(uploaded):
		r.Fault = "the events in the archives that were uploaded are not the ones that were published"
	}
	r.Verified = r.Fault == ""
	return nil
}

// compare names the first two counts that do not agree.
func (r *Result) compare() string {
	for _, c := range []struct {
		name string
		n    uint64
	}{
		{"acknowledged", r.Acked},
		{"stored", r.Stored},
		{"distinct", r.Distinct},
		{"in partitions", r.PartitionRows},
		{"in uploaded archives", r.SFTPRows},
		{"in downloaded archives", r.LinkRows},
	} {
		if c.n != r.Published {
			return fmt.Sprintf("%d events were published, %d are %s", r.Published, c.n, c.name)
		}
	}
	return ""
}

func (d *Demo) countPartitions(ctx context.Context, end time.Time, r *Result) error {
	list := d.System.Bucket.List(nil)
	for {
		o, err := list.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list the partitions: %w", err)
		}
		if !strings.HasSuffix(o.Key, schema.ManifestSuffix) {
			continue
		}
		text, err := d.System.Bucket.ReadAll(ctx, o.Key)
		if err != nil {
			return fmt.Errorf("read manifest %s: %w", o.Key, err)
		}
		m, err := seal.Parse(text)
		if err != nil {
			return fmt.Errorf("manifest %s: %w", o.Key, err)
		}
		if m.HourStart.Before(end) && slices.Contains(d.o.Input.Organizations, m.Organization) {
			r.Partitions++
			r.PartitionRows += m.Rows
			if m.Rows > 0 {
				own, err := d.own(ctx, m.Partition())
				if err != nil {
					return err
				}
				r.PartitionRows -= own
			}
		}
	}
}

// own counts what the system recorded of itself in a partition.
func (d *Demo) own(ctx context.Context, p schema.Partition) (n uint64, err error) {
	file, err := d.System.Bucket.NewReader(ctx, p.CSVKey(), nil)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", p.CSVKey(), err)
	}
	defer file.Close()
	text, err := gzip.NewReader(file)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", p.CSVKey(), err)
	}
	rows := codec.NewCSVReader(text)
	var e codec.Stored
	for err = rows.Next(&e); err == nil; err = rows.Next(&e) {
		if e.Source == owntrail.Source {
			n++
		}
	}
	if !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("read %s: %w", p.CSVKey(), err)
	}
	return n, nil
}

// readArchive verifies an archive as who gets it would, with the key alone, and adds its events. It returns
// the first thing that does not hold.
func (d *Demo) readArchive(ctx context.Context, file string, into ids) (fault string, err error) {
	report, err := verify.Path(ctx, file, verify.Options{Key: d.System.Keys.Public()})
	if err != nil {
		return "", err
	}
	if !report.OK {
		return filepath.Base(file) + ": " + report.Faults[0].Error(), nil
	}
	z, err := zip.OpenReader(file)
	if err != nil {
		return "", fmt.Errorf("open archive %s: %w", filepath.Base(file), err)
	}
	defer z.Close()
	for _, f := range z.File {
		if strings.HasSuffix(f.Name, ".csv") {
			if err := readPartition(f, into); err != nil {
				return "", fmt.Errorf("%s: %s: %w", filepath.Base(file), f.Name, err)
			}
		}
	}
	return "", nil
}

func readPartition(f *zip.File, into ids) error {
	file, err := f.Open()
	if err != nil {
		return err
	}
	defer file.Close()
	rows := csv.NewReader(file)
	rows.ReuseRecord = true
	header, err := rows.Read()
	if err != nil {
		return err
	}
	idColumn, organization, source := slices.Index(header, "id"), slices.Index(header, "organization"), slices.Index(header, "source")
	for {
		record, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if record[source] == owntrail.Source {
			continue
		}
		id, err := uuid.Parse(record[idColumn])
		if err != nil {
			return err
		}
		into.add(record[organization], id)
	}
}

var linkPattern = regexp.MustCompile(`https?://\S+/download/\S+`)

// download follows the link in the text of a mail, as the reader would.
func (d *Demo) download(ctx context.Context, text string) (string, error) {
	link := linkPattern.FindString(text)
	if link == "" {
		return "", errors.New("the mail has no link in it")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, link, http.NoBody)
	if err != nil {
		return "", errors.New("the link in the mail is no address") // not shown: it is a secret
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("download: %w", errors.Unwrap(err))
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("download: the server answers %s", res.Status)
	}
	name, err := url.PathUnescape(path.Base(req.URL.EscapedPath()))
	if err != nil {
		return "", fmt.Errorf("download: %w", err)
	}
	file, err := os.Create(filepath.Join(d.DownloadDir(), filepath.Base(name)))
	if err != nil {
		return "", fmt.Errorf("keep the download: %w", err)
	}
	if _, err = io.Copy(file, res.Body); err != nil {
		_ = file.Close()
		return "", fmt.Errorf("download: %w", err)
	}
	if err := file.Close(); err != nil {
		return "", fmt.Errorf("keep the download: %w", err)
	}
	return file.Name(), nil
}

func splitAddr(addr string) (string, int, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("address %s: %w", addr, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return "", 0, fmt.Errorf("address %s: %w", addr, err)
	}
	return host, n, nil
}
