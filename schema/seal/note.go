package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// ErrSignature means that a statement is not signed by a key that is trusted, or that it was changed
// after it was signed.
var ErrSignature = errors.New("no good signature")

// Signer signs texts; it is what note.NewSigner returns.
type Signer = note.Signer

// Sealed is a manifest as its file has it: a note.
type Sealed struct {
	*Manifest
	Text []byte // what is signed: the manifest's one form
	// Generation is that of the key whose signature holds, in the Ring that opened it.
	Generation int
}

// TextHash is the SHA-256 of the text, by which the next manifest names this one.
func (s *Sealed) TextHash() string {
	sum := sha256.Sum256(s.Text)
	return hex.EncodeToString(sum[:])
}

// Sign returns the file of a manifest.
func Sign(m *Manifest, signer Signer) ([]byte, error) {
	text, err := m.Encode()
	if err != nil {
		return nil, err
	}
	file, err := note.Sign(&note.Note{Text: string(text)}, signer)
	if err != nil {
		return nil, fmt.Errorf("sign the manifest of %s: %w", m.Partition(), err)
	}
	return file, nil
}

// Parse reads a manifest's file without looking at who signed it: for those who copy it.
func Parse(file []byte) (*Sealed, error) {
	n, err := openNote(file, nil, ErrManifest)
	if err != nil {
		return nil, err
	}
	return sealed(n)
}

func sealed(n *note.Note) (*Sealed, error) {
	m, err := Decode([]byte(n.Text))
	if err != nil {
		return nil, err
	}
	return &Sealed{Manifest: m, Text: []byte(n.Text)}, nil
}

// openNote opens a note that known keys signed; with nil, one that anybody signed. A signature that does
// not hold, or is not in its one form, is an error even if another holds.
func openNote(file []byte, known note.Verifiers, kind error) (*note.Note, error) {
	anybody := known == nil
	if anybody {
		known = note.VerifierList()
	}
	n, err := note.Open(file, known)
	var unverified *note.UnverifiedNoteError
	var invalid *note.InvalidSignatureError
	switch {
	case errors.As(err, &unverified) && anybody:
		n = unverified.Note
	case errors.As(err, &unverified):
		names := make([]string, len(unverified.Note.UnverifiedSigs))
		for i, s := range unverified.Note.UnverifiedSigs {
			names[i] = fmt.Sprintf("%s+%08x", s.Name, s.Hash)
		}
		return nil, fmt.Errorf("%w: it is signed by %s, which is not trusted", ErrSignature, strings.Join(names, ", "))
	case errors.As(err, &invalid):
		return nil, fmt.Errorf("%w: that of %s+%08x does not hold: the text or the signature was changed", ErrSignature, invalid.Name, invalid.Hash)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", kind, err)
	}
	if err := strictSignatures(file[len(n.Text)+1:]); err != nil {
		return nil, fmt.Errorf("%w: %w", kind, err)
	}
	return n, nil
}

// strictSignatures refuses what note.Open forgives: base64 with stray bits or line breaks, a key's
// signature twice. So no byte of a file with one signature can be changed unseen.
func strictSignatures(lines []byte) error {
	seen := map[string]bool{}
	for line := range bytes.Lines(lines) {
		text := strings.TrimSuffix(strings.TrimPrefix(string(line), "— "), "\n")
		name, code, _ := strings.Cut(text, " ")
		sig, err := base64.StdEncoding.Strict().DecodeString(code)
		if err != nil || base64.StdEncoding.EncodeToString(sig) != code {
			return fmt.Errorf("the signature of %s is not in its one form", name)
		}
		key := name + string(sig[:4])
		if seen[key] {
			return fmt.Errorf("the signature of %s is there twice", name)
		}
		seen[key] = true
	}
	return nil
}
