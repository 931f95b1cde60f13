package seal

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/kansa-audit/kansa/schema"
)

// ErrProof means that something is no proof in its one form, or that it does not prove its row.
var ErrProof = errors.New("not a proof")

// Proof shows that one row is in a partition, without the other rows.
type Proof struct {
	Version int `json:"version"`
	// Rotations are the files of the rotations of keys, in order.
	Rotations []string `json:"rotations"`
	// Manifest is the file of the partition's manifest.
	Manifest string `json:"manifest"`
	// Index is the row's, from 0. Row is its text in the CSV, CRLF included.
	Index uint64 `json:"index"`
	Row   string `json:"row"`
	// Path is the audit path of RFC 6962, from the leaf to the root, in hexadecimal.
	Path []string `json:"path"`
}

// Encode is the proof's one form in bytes.
func (p *Proof) Encode() ([]byte, error) {
	if p.Rotations == nil {
		p.Rotations = []string{}
	}
	if p.Path == nil {
		p.Path = []string{}
	}
	return canonical(p)
}

// DecodeProof reads what Encode writes, and nothing else.
func DecodeProof(data []byte) (*Proof, error) {
	p := new(Proof)
	if err := decode(data, p, ErrProof); err != nil {
		return nil, err
	}
	if p.Version != 1 || p.Rotations == nil || p.Path == nil {
		return nil, fmt.Errorf("%w: version %d with what it has is not known", ErrProof, p.Version)
	}
	return p, nil
}

// Verify tells whether the row is where the proof says, in a partition that a key of the ring sealed, and
// returns its manifest. columns are those of the partition's CSV.
func (p *Proof) Verify(g *Ring, columns []string) (*Sealed, error) {
	s, err := g.Open([]byte(p.Manifest))
	if err != nil {
		return nil, err
	}
	root, err := hex.DecodeString(s.MerkleRoot)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProof, err)
	}
	path := make([][]byte, len(p.Path))
	for i, h := range p.Path {
		if !isHash(h) {
			return nil, fmt.Errorf("%w: %q in its path is no SHA-256", ErrProof, h)
		}
		path[i], _ = hex.DecodeString(h)
	}
	if err := p.checkRow(s.Partition(), columns); err != nil {
		return nil, err
	}
	leaf := rfc6962.DefaultHasher.HashLeaf([]byte(p.Row))
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, p.Index, s.Rows, leaf, path, root); err != nil {
		return nil, fmt.Errorf("%w: the row does not lead to the manifest's Merkle root: %w", ErrProof, err)
	}
	return s, nil
}

// checkRow tells whether the row is one row of the partition's CSV.
func (p *Proof) checkRow(of schema.Partition, columns []string) error {
	rows := NewRows(of, columns)
	if _, err := rows.Write(append(rows.header[:len(rows.header):len(rows.header)], p.Row...)); err != nil {
		return fmt.Errorf("%w: %w", ErrProof, err)
	}
	switch c, err := rows.Close(); {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrProof, err)
	case c.Rows != 1:
		return fmt.Errorf("%w: it holds %d rows, not one", ErrProof, c.Rows)
	}
	return nil
}
