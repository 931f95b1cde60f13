package seal

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/kansa-audit/kansa/schema"
)

// ErrReceipt means that a text is no receipt in its one form.
var ErrReceipt = errors.New("not a receipt")

// Receipt is the statement that a file was delivered to an SFTP server and then read back from it.
type Receipt struct {
	// Receipt is the version of the form, 1. No other statement begins with this field.
	Receipt      int    `json:"receipt"`
	Organization string `json:"organization"`
	// Export is the id of the export, Destination the name of its destination.
	Export      string `json:"export"`
	Destination string `json:"destination"`
	// Address is the server's host:port, User who was signed in, HostKey the fingerprint (SHA256:…) of
	// the key that the server proved to have.
	Address string `json:"address"`
	User    string `json:"user"`
	HostKey string `json:"host_key"`
	// Path is the file on the server. It was Size bytes long, with this SHA-256, when it was read back
	// at Time; and so was the archive that was sent.
	Path   string    `json:"path"`
	Name   string    `json:"name"`
	Size   int64     `json:"size"`
	SHA256 string    `json:"sha256"`
	Time   time.Time `json:"time"`
}

const beginsReceipt = "{\n  \"receipt\": "

// IsReceipt tells whether a file begins as receipts do.
func IsReceipt(file []byte) bool { return strings.HasPrefix(string(file), beginsReceipt) }

func (r *Receipt) check() error {
	if r.Receipt != 1 {
		return fmt.Errorf("version %d is not known", r.Receipt)
	}
	if f := schema.CheckOrganization(r.Organization); f != nil {
		return f
	}
	for field, text := range map[string]string{
		"export": r.Export, "destination": r.Destination, "address": r.Address, "user": r.User, "host_key": r.HostKey, "path": r.Path, "name": r.Name,
	} {
		if text == "" || !Plain(text) {
			return fmt.Errorf("%s is %q", field, text)
		}
	}
	switch {
	case !strings.HasPrefix(r.HostKey, "SHA256:"):
		return fmt.Errorf("host_key %q is no SHA-256 fingerprint", r.HostKey)
	case r.Size < 0:
		return fmt.Errorf("size is %d", r.Size)
	case !isHash(r.SHA256):
		return fmt.Errorf("sha256 is %q", r.SHA256)
	case !wholeSecond(r.Time):
		return errors.New("time is not in whole seconds of UTC")
	}
	return nil
}

// SignReceipt returns the file of a receipt.
func SignReceipt(r *Receipt, signer Signer) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReceipt, err)
	}
	text, err := canonical(r)
	if err != nil {
		return nil, err
	}
	file, err := note.Sign(&note.Note{Text: string(text)}, signer)
	if err != nil {
		return nil, fmt.Errorf("sign the receipt of export %s: %w", r.Export, err)
	}
	return file, nil
}

// OpenReceipt opens a receipt's file that a key of the ring signed while it was in office.
func (g *Ring) OpenReceipt(file []byte) (*Receipt, error) {
	n, err := openNote(file, g.Verifiers, ErrReceipt)
	if err != nil {
		return nil, err
	}
	r := new(Receipt)
	if err := decode([]byte(n.Text), r, ErrReceipt); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReceipt, err)
	}
	// In the second of a rotation, either key may have signed.
	if i := g.generation(n); i < len(g.retired) && r.Time.After(g.retired[i]) {
		return nil, fmt.Errorf("%w: %s signed a receipt of %s, and was rotated away at %s", ErrRetired,
			short(g.keys[i]), r.Time.Format(time.RFC3339), g.retired[i].Format(time.RFC3339))
	}
	return r, nil
}
