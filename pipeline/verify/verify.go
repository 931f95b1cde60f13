package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"filippo.io/age"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Options of a verification.
type Options struct {
	// Key is the verifier key that is trusted: any that sealed, or was rotated to or from.
	Key string
	// Rotations is a folder that has keys/ of a partition store, for an archive that was made before Key
	// took office: what it carries does not lead that far.
	Rotations string
	// FromStart demands that chains begin with their first manifest.
	FromStart bool
	// Rendered takes an archive whose files were made of partitions: their manifests are checked, and that the files
	// are those that the archive itself lists. Such files are not sealed, so without it they are a fault.
	Rendered bool
	// From and To, if set, demand that every organization's trail reaches from one to the other.
	From, To time.Time
	// Identities decrypt what is encrypted at rest, or to a recipient.
	Identities []age.Identity
	// Parallel bounds the partitions read at once; default the number of cores.
	Parallel int
	// Progress is told how many bytes of files are read, of how many; from several goroutines.
	Progress func(done, total int64)
}

// ReadKey reads the file of a verifier key: one line, as seal.pub.
func ReadKey(name string) (string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("%w: read the key: %w", ErrUnreadable, err)
	}
	key := strings.TrimSpace(string(text))
	if strings.HasPrefix(key, "PRIVATE+KEY+") {
		return "", fmt.Errorf("%w: %s is a private key: give the verifier key, seal.pub", ErrUnreadable, name)
	}
	if _, err := note.NewVerifier(key); err != nil {
		return "", fmt.Errorf("%w: %s is no verifier key: %w", ErrUnreadable, name, err)
	}
	return key, nil
}

// kindOf tells what a path leads to.
func kindOf(name string) (Kind, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return Store, nil
	}
	for suffix, kind := range map[string]Kind{".zip": Archive, ".zip.age": Archive, schema.ManifestSuffix: Partition, ".csv.gz": Partition, ".csv": Partition} {
		if strings.HasSuffix(name, suffix) {
			return kind, nil
		}
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 64)
	n, _ := io.ReadFull(f, head)
	switch {
	case seal.IsReceipt(head[:n]):
		return Receipt, nil
	case strings.HasPrefix(string(head[:n]), "PK"):
		return Archive, nil
	case strings.HasPrefix(string(head[:n]), "{"):
		return Proof, nil
	}
	return "", fmt.Errorf("%s is no archive (.zip), partition store (a folder), partition (%s, %s), proof or receipt", name, schema.ManifestSuffix, schema.CSVSuffix)
}

// open lists what a path leads to.
func open(name string, kind Kind, o Options, r *Report) (*files, error) {
	switch kind {
	case Archive:
		return openArchive(name, o, r)
	case Store:
		return openStore(name, o, r)
	default:
		return openPartition(name, o)
	}
}

// Path verifies what a path leads to. An error, which answers to ErrUnreadable, means that it could not be
// done; what does not hold is in the report.
func Path(ctx context.Context, name string, o Options) (*Report, error) {
	began := time.Now()
	unreadable := func(err error) (*Report, error) { return nil, fmt.Errorf("%w: %w", ErrUnreadable, err) }
	if _, err := note.NewVerifier(o.Key); err != nil {
		return unreadable(fmt.Errorf("verifier key %.100q: %w", o.Key, err))
	}
	kind, err := kindOf(name)
	if err != nil {
		return unreadable(err)
	}
	r := newReport(name, kind)
	r.Key = o.Key
	if kind == Proof || kind == Receipt {
		data, err := os.ReadFile(name)
		if err != nil {
			return unreadable(err)
		}
		if kind == Proof {
			verifyProof(data, o, r)
		} else {
			verifyReceipt(data, o, r)
		}
		r.finish(began)
		return r, nil
	}
	l, err := open(name, kind, o, r)
	if err != nil {
		return unreadable(err)
	}
	defer func() { _ = l.close() }()
	if err := verifyFiles(ctx, l, o, r); err != nil {
		return unreadable(err)
	}
	r.finish(began)
	return r, nil
}

func verifyFiles(ctx context.Context, l *files, o Options, r *Report) error {
	ring, err := readRing(l, o, r)
	if err != nil {
		return err
	}
	r.Keys = ring.Keys()
	links, broken, err := readManifests(ctx, l, o, ring, r)
	if err != nil {
		return err
	}
	made, err := readRendered(ctx, l, links, o, r)
	if err != nil {
		return err
	}
	if len(broken) == 0 { // else what should stand there can't be told
		if err := checkSums(l, links, made, r); err != nil {
			return err
		}
	}
	if err := readPartitions(ctx, l, links, ring, made.manifests, o, r); err != nil {
		return err
	}
	chains(links, broken, o, r)
	for _, s := range r.Series {
		r.Rows, r.Hours = r.Rows+s.Rows, r.Hours+s.Hours
	}
	if len(links)+len(broken)+len(l.csv) == 0 && len(r.Faults) == 0 {
		r.Notes = append(r.Notes, "there is no partition in it")
	}
	return others(l, r)
}

// readRing returns the ring of the trusted key by the rotations that are here.
func readRing(l *files, o Options, r *Report) (*seal.Ring, error) {
	var failed *readError
	found, err := l.keys()
	if err == nil && o.Rotations != "" {
		found.Rotations, err = goOn(found.Rotations, o)
	}
	var ring *seal.Ring
	if err == nil {
		ring, err = seal.NewRing(o.Key, found.Rotations...)
	}
	if errors.As(err, &failed) {
		return nil, err
	}
	if err != nil {
		r.fault("keys/", nil, ErrKeys, "%v", err)
		return seal.NewRing(o.Key) // what this key alone has sealed still shows
	}
	isOf := func(name string, data []byte, has func(key string) bool) {
		if s, ok := strings.CutSuffix(string(data), "\n"); !ok || !has(s) {
			r.fault(name, nil, ErrKeys, "it holds %.200q, which is not a key that yours leads to", data)
		}
	}
	if found.First != nil {
		isOf(seal.FirstKey, found.First, func(k string) bool { return k == ring.Keys()[0] })
	}
	_, public := l.others[seal.PublicKey]
	if r.Kind == Archive && !public {
		r.fault(seal.PublicKey, nil, ErrMissing, "every archive has one")
	}
	if r.Kind == Store && !public && found.First == nil {
		r.fault(seal.FirstKey, nil, ErrMissing, "every partition store has one")
	}
	if f, ok := l.others[seal.PublicKey]; ok {
		data, err := f.small()
		if errors.As(err, &failed) {
			return nil, err
		}
		isOf(seal.PublicKey, data, func(k string) bool { return err == nil && slices.Contains(ring.Keys(), k) })
	}
	return ring, nil
}

// goOn returns the rotations of a folder, which have to begin with those that are given.
func goOn(given [][]byte, o Options) ([][]byte, error) {
	l, dir := newFiles(), o.Rotations
	found, err := keyFiles(dir, o.Identities)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		l.add(f)
	}
	more, err := l.keys()
	if err != nil {
		return nil, err
	}
	for i, r := range given {
		if i < len(more.Rotations) && !bytes.Equal(r, more.Rotations[i]) {
			return nil, fmt.Errorf("%w: rotation %d is not the one in %s", ErrKeys, i+1, dir)
		}
	}
	if len(more.Rotations) < len(given) {
		return given, nil
	}
	return more.Rotations, nil
}

// keys reads the files of keys/.
func (l *files) keys() (seal.KeyFiles, error) {
	return seal.ReadKeys(func(name string) ([]byte, error) {
		f, ok := l.others[name]
		if !ok {
			return nil, nil
		}
		return f.small()
	})
}

// workers runs do for each of n things, on all cores, each worker with its own state.
func workers[W any](ctx context.Context, o Options, n int, state func() W, do func(W, int) error) error {
	parallel := o.Parallel
	if parallel == 0 {
		parallel = runtime.GOMAXPROCS(0)
	}
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(parallel, n) {
		g.Go(func() error {
			w := state()
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := do(w, i); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// readManifests opens every manifest. broken are the names of those that can't be trusted.
func readManifests(ctx context.Context, l *files, o Options, ring *seal.Ring, r *Report) (links []link, broken []string, err error) {
	list := sorted(l.manifests)
	all := make([]link, len(list))
	var mu sync.Mutex
	err = workers(ctx, o, len(list), func() struct{} { return struct{}{} }, func(_ struct{}, i int) error {
		f := list[i]
		s, err := openManifest(f, ring, r.Kind)
		var failed *readError
		if errors.As(err, &failed) {
			return err
		}
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			broken = append(broken, f.name)
			fault := &Fault{File: f.name, Problem: err.Error(), err: err}
			if s != nil {
				fault.Hour = hourOf(s)
			}
			r.Faults = append(r.Faults, fault)
			return nil
		}
		all[i] = link{Sealed: s, name: f.name, hash: s.TextHash()}
		s.Text = nil // a store of years has many
		return nil
	})
	return slices.DeleteFunc(all, func(k link) bool { return k.Sealed == nil }), broken, err
}

// openManifest opens a manifest that stands where it belongs.
func openManifest(f file, ring *seal.Ring, kind Kind) (*seal.Sealed, error) {
	data, err := f.small()
	if err != nil {
		return nil, err
	}
	s, err := ring.Open(data)
	if err != nil {
		return nil, err
	}
	want := s.Partition().ManifestKey()
	if kind == Partition {
		want = path.Base(want)
	}
	if f.name != want {
		return s, fmt.Errorf("%w: it speaks of %s", ErrChain, s.Partition())
	}
	if kind == Archive && !f.modified.Equal(s.HourEnd) {
		return s, fmt.Errorf("%w: its time is %s, not the end of its hour", ErrArchive, stamp(f.modified.UTC()))
	}
	return s, nil
}

// readPartitions holds every partition's file against its manifest.
func readPartitions(ctx context.Context, l *files, links []link, ring *seal.Ring, made map[string]bool, o Options, r *Report) error {
	var total int64
	spoken := map[string]bool{}
	for _, k := range links {
		p := strings.TrimSuffix(k.name, schema.ManifestSuffix)
		spoken[p] = true
		total += l.csv[p].size
	}
	for p := range l.manifests {
		spoken[p] = true // even if the manifest can't be trusted: that was said
	}
	for p, f := range l.csv {
		if !spoken[p] {
			r.fault(f.name, nil, ErrUnsealed, "there is no manifest of it (if a rollup is at work on this hour just now, verify again)")
		}
	}
	for p, f := range l.removed {
		if !spoken[p] {
			r.fault(f.name, nil, ErrUnsealed, "there is no manifest of what it says was removed")
		}
	}
	var gone removals
	var mu sync.Mutex
	var done atomic.Int64
	read := func(n int64) {
		if at := done.Add(n); o.Progress != nil {
			o.Progress(at, total)
		}
	}
	plain := false
	err := workers(ctx, o, len(links), func() *worker { return newWorker(read) }, func(w *worker, i int) error {
		k := links[i]
		f, there := l.csv[strings.TrimSuffix(k.name, schema.ManifestSuffix)]
		if away, err := wasRemoved(l, k, there, ring); away || err != nil {
			var failed *readError
			if errors.As(err, &failed) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				r.Faults = append(r.Faults, faultOf(k.Partition().RemovedKey(), k.Sealed, err))
			} else {
				gone.add(k.Sealed)
			}
			return nil
		}
		if !there && made[k.name] {
			return nil
		}
		err := onePartition(w, k, f, there, r.Kind)
		var failed *readError
		if errors.As(err, &failed) {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			name := f.name
			if !there {
				name = k.Partition().CSVKey()
			}
			r.Faults = append(r.Faults, faultOf(name, k.Sealed, err))
		} else {
			r.CSVBytes, r.FileBytes, plain = r.CSVBytes+k.CSVBytes, r.FileBytes+f.size, plain || f.plain
		}
		return nil
	})
	gone.note(r)
	if plain {
		r.Notes = append(r.Notes, "CSV files are not compressed any more: their text is what was sealed, the SHA-256 of the compressed files can't be told")
	}
	return err
}

func onePartition(w *worker, k link, f file, there bool, kind Kind) error {
	switch {
	case !there && k.Rows > 0:
		return fmt.Errorf("%w: the manifest says that it has %d rows", ErrMissing, k.Rows)
	case !there:
		return nil
	case k.Rows == 0:
		return fmt.Errorf("%w: its manifest says that the hour has no events", ErrUnsealed)
	case kind == Archive && !f.modified.Equal(k.HourEnd):
		return fmt.Errorf("%w: its time is %s, not the end of its hour", ErrArchive, stamp(f.modified.UTC()))
	}
	_, err := w.partition(k.Sealed, f, nil)
	return err
}

// unsealed are files that stand beside the partitions and are not covered by any signature.
var unsealed = []string{"README.txt", "EMPTY.txt", exporter.Checksums, exporter.RenderedList}

// others looks at the files that are neither partitions nor manifests.
func others(l *files, r *Report) error {
	if _, ok := l.others[unsealed[0]]; r.Kind == Archive && !ok && len(l.others) > 0 {
		r.fault(unsealed[0], nil, ErrMissing, "every archive has one")
	}
	for _, f := range sorted(l.others) {
		name := f.name
		switch {
		case name == seal.PublicKey, name == seal.FirstKey, isRotation(l, name):
		case slices.Contains(unsealed, name):
			if err := f.whole(); err != nil {
				var failed *readError
				if errors.As(err, &failed) {
					return err
				}
				r.fault(name, nil, ErrArchive, "%v", err)
			}
			r.Notes = append(r.Notes, name+" is not sealed: anybody may have written it")
		case r.Kind == Store && strings.HasSuffix(name, ".tmp"):
			r.Notes = append(r.Notes, name+" was left behind by a write that was cut off, or is being written")
		default:
			r.fault(name, nil, ErrUnsealed, "it belongs to no partition")
		}
	}
	return nil
}

// isRotation tells whether a name is that of one of the rotations, which are counted without a gap.
func isRotation(l *files, name string) bool {
	for n := uint64(1); ; n++ {
		key := seal.RotationKey(n)
		if key == name {
			return true
		}
		if _, ok := l.others[key]; !ok {
			return false
		}
	}
}

func sorted(m map[string]file) []file {
	list := make([]file, 0, len(m))
	for _, f := range m {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return list
}
