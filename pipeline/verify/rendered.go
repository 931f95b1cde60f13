package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/render"
)

// isRendered tells by a file's name that it is made of a partition, not one.
func isRendered(name string) bool {
	return strings.Contains(name, "/") && slices.ContainsFunc(render.Suffixes, func(s string) bool { return strings.HasSuffix(name, s) })
}

// mostListed bounds the list of rendered files, which is read as a whole: some hundred bytes for each of a hundred
// thousand hours.
const mostListed = 256 << 20

// rendering is what was found of a rendered archive.
type rendering struct {
	manifests map[string]bool // names of those of whose partitions files were made
	parts     []exporter.RenderedPart
}

// readRendered checks the files of a rendered archive: that they are those the archive lists, made of partitions whose
// manifests are here.
func readRendered(ctx context.Context, l *files, links []link, o Options, r *Report) (found rendering, _ error) {
	listed, there := l.others[exporter.RenderedList]
	if !there && len(l.rendered) == 0 {
		return found, nil
	}
	if !there || !o.Rendered {
		problem := "it was made of a partition, and nothing of it is sealed"
		if there {
			problem += ": kansa verify --rendered checks the manifests, and that the files are those that " + exporter.RenderedList + " lists"
		}
		for _, f := range sorted(l.rendered) {
			r.fault(f.name, nil, ErrUnsealed, "%s", problem)
		}
		if there && len(l.rendered) == 0 {
			r.fault(listed.name, nil, ErrUnsealed, "the archive was rendered: verify it with --rendered")
		}
		return found, nil
	}
	list, err := readList(listed)
	var failed *readError
	if errors.As(err, &failed) {
		return found, err
	}
	if err != nil {
		r.fault(listed.name, nil, ErrArchive, "%v", err)
		return found, nil
	}
	manifests := map[string]link{}
	for _, k := range links {
		manifests[k.name] = k
	}
	made := map[string]bool{}
	var parts []exporter.RenderedPart
	for _, f := range list.Files {
		k, ok := manifests[f.Manifest]
		switch {
		case !ok:
			r.fault(f.Manifest, nil, ErrMissing, "%s says that files were made of its partition", listed.name)
			continue
		case made[f.Manifest]:
			r.fault(listed.name, nil, ErrArchive, "it has %s twice", f.Manifest)
			continue
		case f.CSVSHA256 != k.CSVSHA256 || f.SealedRows != k.Rows:
			r.fault(listed.name, nil, ErrUnsealed, "it speaks of a partition of %d rows with SHA-256 %s, %s of %d with %s", f.SealedRows, f.CSVSHA256, f.Manifest, k.Rows, k.CSVSHA256)
		case f.Rows > k.Rows || f.Rows < k.Rows && list.Content.Filter.IsZero():
			r.fault(listed.name, nil, ErrUnsealed, "it has %d rows of the %d of %s, which the filter does not explain", f.Rows, k.Rows, f.Manifest)
		}
		made[f.Manifest] = true
		parts = append(parts, f.Parts...)
	}
	unlisted := map[string]bool{}
	for name := range l.rendered {
		unlisted[name] = true
	}
	for _, p := range parts {
		if _, ok := l.rendered[p.Name]; !ok {
			r.fault(p.Name, nil, ErrMissing, "%s lists it", listed.name)
		} else if !unlisted[p.Name] {
			r.fault(p.Name, nil, ErrArchive, "%s lists it twice", listed.name)
		}
		delete(unlisted, p.Name)
	}
	for name := range unlisted {
		r.fault(name, nil, ErrUnsealed, "%s does not list it", listed.name)
	}
	if err := checkParts(ctx, l, parts, o, r); err != nil {
		return found, err
	}
	r.Rendered = uint64(len(parts))
	r.Notes = append(r.Notes, fmt.Sprintf("%d files were made of partitions: what is sealed are their manifests. Whoever could change this archive could change them, and the list that they were compared with", len(parts)))
	return rendering{made, parts}, nil
}

// checkSums holds the list of checksums against the manifests, or the list of rendered files.
func checkSums(l *files, links []link, made rendering, r *Report) error {
	f, there := l.others[exporter.Checksums]
	if !there && r.Kind != Archive {
		return nil
	}
	var sums []exporter.Sum
	for _, p := range made.parts {
		sums = append(sums, exporter.Sum{Name: p.Name, SHA256: p.SHA256})
	}
	for _, k := range links {
		_, there := l.csv[k.Partition().Path()]
		if _, away := l.removed[k.Partition().Path()]; away && !there {
			continue // what is not there has no sum
		}
		if k.Rows > 0 && made.manifests == nil {
			sums = append(sums, exporter.Sum{Name: k.Partition().Path() + ".csv", SHA256: k.CSVSHA256})
		}
	}
	want := exporter.AppendSums(nil, sums)
	if !there {
		if len(want) > 0 {
			r.fault(exporter.Checksums, nil, ErrMissing, "every archive with events has one")
		}
		return nil
	}
	in, err := f.open()
	if err != nil {
		return err
	}
	defer in.Close()
	got, err := io.ReadAll(io.LimitReader(in, int64(len(want))+1))
	var failed *readError
	switch {
	case errors.As(err, &failed):
		return err
	case err != nil:
		r.fault(f.name, nil, ErrArchive, "%v", err)
	case !bytes.Equal(got, want):
		r.fault(f.name, nil, ErrUnsealed, "it does not say what the manifests say")
	}
	return nil
}

func readList(f file) (*exporter.Rendering, error) {
	if f.size > mostListed {
		return nil, fmt.Errorf("it has %d bytes, too many", f.size)
	}
	in, err := f.open()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	data, err := io.ReadAll(io.LimitReader(in, mostListed))
	if err != nil {
		return nil, err
	}
	var list exporter.Rendering
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	if list.Version != 1 {
		return nil, fmt.Errorf("version %d is not known", list.Version)
	}
	return &list, nil
}

// checkParts reads every file that is listed.
func checkParts(ctx context.Context, l *files, parts []exporter.RenderedPart, o Options, r *Report) error {
	var mu sync.Mutex
	return workers(ctx, o, len(parts), func() []byte { return make([]byte, 64<<10) }, func(buf []byte, i int) error {
		p := parts[i]
		f, ok := l.rendered[p.Name]
		if !ok {
			return nil
		}
		n, sum, err := hashOf(f, buf)
		var failed *readError
		switch {
		case errors.As(err, &failed):
			return err
		case err == nil && (n != p.Bytes || sum != p.SHA256):
			err = fmt.Errorf("it has %d bytes with SHA-256 %s; %s lists %d with %s", n, sum, exporter.RenderedList, p.Bytes, p.SHA256)
		}
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			r.fault(p.Name, nil, ErrArchive, "%v", err)
		}
		return nil
	})
}

func hashOf(f file, buf []byte) (int64, string, error) {
	in, err := f.open()
	if err != nil {
		return 0, "", err
	}
	defer in.Close()
	sum := sha256.New()
	n, err := io.CopyBuffer(sum, struct{ io.Reader }{in}, buf)
	return n, hex.EncodeToString(sum.Sum(nil)), err
}

// whole reads all of a file, which checks what its archive says of it.
func (f file) whole() error {
	in, err := f.open()
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(io.Discard, in)
	return err
}
