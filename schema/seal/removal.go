package seal

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/kansa-audit/kansa/schema"
)

// ErrRemoval means that a text is no removal in its one form, or that it contradicts itself.
var ErrRemoval = errors.New("not a removal")

// Removal is the statement that the file of a partition was removed on purpose. Its manifest stays, so that the chain
// holds, and what was there can be named: whoever has the file elsewhere can still check it.
type Removal struct {
	Version      int          `json:"version"`
	Organization string       `json:"organization"`
	Trail        schema.Trail `json:"trail"`
	HourStart    time.Time    `json:"hour_start"`
	HourEnd      time.Time    `json:"hour_end"`
	// Manifest is the SHA-256 of the text of the partition's manifest.
	Manifest string `json:"manifest"`
	// Time is when, and Reason why.
	Time   time.Time `json:"time"`
	Reason string    `json:"reason"`
}

// NewRemoval says that the file of a sealed partition is removed now.
func NewRemoval(s *Sealed, now time.Time, reason string) *Removal {
	return &Removal{
		Version: 1, Organization: s.Organization, Trail: s.Trail, HourStart: s.HourStart, HourEnd: s.HourEnd, Manifest: s.TextHash(),
		Time: now.UTC().Truncate(time.Second), Reason: reason,
	}
}

func (r *Removal) check() error {
	switch {
	case r.Version != 1:
		return fmt.Errorf("version %d is not known", r.Version)
	case !wholeSecond(r.Time):
		return errors.New("time is not in whole seconds of UTC")
	case r.Time.Before(r.HourEnd):
		return errors.New("it was removed before its hour had ended")
	case r.Reason == "" || !Plain(r.Reason):
		return errors.New("there is no reason, or it is no line of text")
	case len(r.Manifest) != 64:
		return errors.New("manifest is no SHA-256")
	}
	return nil
}

// SignRemoval returns the file of a removal.
func SignRemoval(r *Removal, signer Signer) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRemoval, err)
	}
	text, err := canonical(r)
	if err != nil {
		return nil, err
	}
	file, err := note.Sign(&note.Note{Text: string(text)}, signer)
	if err != nil {
		return nil, fmt.Errorf("sign the removal: %w", err)
	}
	return file, nil
}

// OpenRemoval opens the file of a removal that a key of the ring signed, while it was in office.
func (g *Ring) OpenRemoval(file []byte) (*Removal, error) {
	n, err := openNote(file, g.Verifiers, ErrRemoval)
	if err != nil {
		return nil, err
	}
	r := new(Removal)
	if err := decode([]byte(n.Text), r, ErrRemoval); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRemoval, err)
	}
	if i := g.generation(n); i < len(g.retired) && r.Time.After(g.retired[i]) {
		return nil, fmt.Errorf("%w: %s says that a file was removed at %s, and was rotated away at %s", ErrRetired,
			short(g.keys[i]), r.Time.Format(time.RFC3339), g.retired[i].Format(time.RFC3339))
	}
	return r, nil
}

// Of tells whether r speaks of the partition of a manifest, of which the hash of the text is given.
func (r *Removal) Of(m *Manifest, hash string) error {
	if r.Organization != m.Organization || r.Trail != m.Trail || !r.HourStart.Equal(m.HourStart) || !r.HourEnd.Equal(m.HourEnd) || r.Manifest != hash {
		return fmt.Errorf("%w: it speaks of another partition, or of another manifest", ErrRemoval)
	}
	return nil
}
