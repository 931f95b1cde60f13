package seal

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// ErrRotation means that a text is no rotation in its one form, or does not go on from the key before it.
var ErrRotation = errors.New("not a rotation of keys")

// ErrRetired means that a key sealed an hour that began after it had been rotated away.
var ErrRetired = errors.New("sealed with a key that was rotated away before")

// Rotation is the statement that one key takes the place of another. Both sign it: the old one gives the
// office away, the new one takes it. So trust goes from either to the other.
type Rotation struct {
	Version int `json:"version"`
	// Number counts rotations from 1.
	Number uint64 `json:"number"`
	// OldKey and NewKey are verifier keys in the form of notes, name+hash+key.
	OldKey string `json:"old_key"`
	NewKey string `json:"new_key"`
	// Time is when. The old key seals no hour that begins then or later.
	Time time.Time `json:"time"`
}

// RotationKey is where a rotation lies in the partition store and in archives.
func RotationKey(number uint64) string { return fmt.Sprintf("keys/%04d.rotation", number) }

// FirstKey is where the first verifier key lies in the partition store: a line. PublicKey is where an
// archive has the one that seals now.
const (
	FirstKey  = "keys/0000.pub"
	PublicKey = "seal.pub"
)

func (r *Rotation) check() error {
	switch {
	case r.Version != 1:
		return fmt.Errorf("version %d is not known", r.Version)
	case r.Number == 0:
		return errors.New("number is 0: rotations are counted from 1")
	case r.OldKey == r.NewKey:
		return errors.New("the new key is the old one")
	case !wholeSecond(r.Time):
		return errors.New("time is not in whole seconds of UTC")
	}
	for _, key := range []string{r.OldKey, r.NewKey} {
		if _, err := note.NewVerifier(key); err != nil || !Plain(key) {
			return fmt.Errorf("%q is no verifier key", key)
		}
	}
	return nil
}

// SignRotation returns the file of a rotation.
func SignRotation(r *Rotation, old, successor Signer) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRotation, err)
	}
	text, err := canonical(r)
	if err != nil {
		return nil, err
	}
	file, err := note.Sign(&note.Note{Text: string(text)}, old, successor)
	if err != nil {
		return nil, fmt.Errorf("sign the rotation: %w", err)
	}
	return file, nil
}

// openRotation opens the file of a rotation that both its keys signed.
func openRotation(file []byte) (*Rotation, error) {
	n, err := openNote(file, nil, ErrRotation)
	if err != nil {
		return nil, err
	}
	r := new(Rotation)
	if err := decode([]byte(n.Text), r, ErrRotation); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRotation, err)
	}
	for _, key := range []string{r.OldKey, r.NewKey} {
		v, err := note.NewVerifier(key)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRotation, err)
		}
		if _, err := openNote(file, note.VerifierList(v), ErrRotation); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Ring holds the keys of a chain, in the order in which one took the place of another. It is a note.Verifiers
// of all of them.
type Ring struct {
	keys      []string
	verifiers []note.Verifier
	retired   []time.Time // when each was rotated away, but the last
	note.Verifiers
}

// NewRing returns the ring to which a verifier key belongs: the key, and those it leads to by rotations,
// given in order from the first. Without rotations it is the key alone. A key that no rotation names is
// an error: what was rotated then is somebody else's.
func NewRing(key string, rotations ...[]byte) (*Ring, error) {
	if _, err := note.NewVerifier(key); err != nil {
		return nil, fmt.Errorf("verifier key %.100q: %w", key, err)
	}
	g := &Ring{}
	for i, file := range rotations {
		r, err := openRotation(file)
		if err != nil {
			return nil, fmt.Errorf("rotation %d: %w", i+1, err)
		}
		switch {
		case r.Number != uint64(i+1):
			return nil, fmt.Errorf("%w: the rotation after %d has number %d", ErrRotation, i, r.Number)
		case i > 0 && r.OldKey != g.keys[i]:
			return nil, fmt.Errorf("%w: rotation %d is of %s, not of %s", ErrRotation, r.Number, short(r.OldKey), short(g.keys[i]))
		case i > 0 && r.Time.Before(g.retired[i-1]):
			return nil, fmt.Errorf("%w: rotation %d is of a time before the one before it", ErrRotation, r.Number)
		}
		if i == 0 {
			g.keys = append(g.keys, r.OldKey)
		}
		for _, old := range g.keys {
			if old == r.NewKey {
				return nil, fmt.Errorf("%w: rotation %d goes back to a key that was rotated away", ErrRotation, r.Number)
			}
		}
		g.keys, g.retired = append(g.keys, r.NewKey), append(g.retired, r.Time)
	}
	if len(rotations) == 0 {
		g.keys = []string{key}
	}
	trusted := false
	for _, k := range g.keys {
		v, err := note.NewVerifier(k)
		if err != nil {
			return nil, fmt.Errorf("verifier key %.100q: %w", k, err)
		}
		g.verifiers = append(g.verifiers, v)
		trusted = trusted || k == key
	}
	g.Verifiers = note.VerifierList(g.verifiers...)
	if !trusted {
		return nil, fmt.Errorf("%w: none of the rotations names the key %s", ErrSignature, short(key))
	}
	return g, nil
}

// short names a key in an error.
func short(key string) string {
	v, err := note.NewVerifier(key)
	if err != nil {
		return fmt.Sprintf("%.40q", key)
	}
	return fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash())
}

// KeyFiles are what a partition store or an archive holds of keys.
type KeyFiles struct {
	First     []byte // the first verifier key; an archive has none
	Rotations [][]byte
}

// ReadKeys reads them; read returns nil for a file that is not there.
func ReadKeys(read func(name string) ([]byte, error)) (f KeyFiles, err error) {
	if f.First, err = read(FirstKey); err != nil {
		return KeyFiles{}, fmt.Errorf("read %s: %w", FirstKey, err)
	}
	for n := uint64(1); ; n++ {
		file, err := read(RotationKey(n))
		if err != nil {
			return KeyFiles{}, fmt.Errorf("read %s: %w", RotationKey(n), err)
		}
		if file == nil {
			return f, nil
		}
		f.Rotations = append(f.Rotations, file)
	}
}

// Ring returns the ring of a store by its own account: the one that begins with the first key. Whoever
// has a key from elsewhere makes a ring with that.
func (f KeyFiles) Ring() (*Ring, error) {
	first, ok := strings.CutSuffix(string(f.First), "\n")
	if !ok {
		return nil, fmt.Errorf("%s is not a line with a verifier key", FirstKey)
	}
	g, err := NewRing(first, f.Rotations...)
	if err != nil {
		return nil, err
	}
	if g.keys[0] != first {
		return nil, fmt.Errorf("%w: %s is not the key that the first rotation begins with", ErrRotation, FirstKey)
	}
	return g, nil
}

// Keys are the verifier keys, the oldest first.
func (g *Ring) Keys() []string { return append([]string(nil), g.keys...) }

// Current is the key that seals now.
func (g *Ring) Current() string { return g.keys[len(g.keys)-1] }

// Open opens a manifest's file that a key of the ring signed while it was in office.
func (g *Ring) Open(file []byte) (*Sealed, error) {
	n, err := openNote(file, g.Verifiers, ErrManifest)
	if err != nil {
		return nil, err
	}
	s, err := sealed(n)
	if err != nil {
		return nil, err
	}
	s.Generation = g.generation(n)
	if s.Generation < len(g.retired) && !s.HourStart.Before(g.retired[s.Generation]) {
		return nil, fmt.Errorf("%w: %s seals the hour of %s, and was rotated away at %s", ErrRetired,
			short(g.keys[s.Generation]), s.HourStart.Format(time.RFC3339), g.retired[s.Generation].Format(time.RFC3339))
	}
	return s, nil
}

// generation is that of the newest key that signed.
func (g *Ring) generation(n *note.Note) int {
	newest := -1
	for _, sig := range n.Sigs {
		for i, v := range g.verifiers {
			if v.Name() == sig.Name && v.KeyHash() == sig.Hash {
				newest = max(newest, i)
			}
		}
	}
	return newest
}
