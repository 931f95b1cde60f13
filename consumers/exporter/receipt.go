package exporter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Receipts signs what was read back from a server (requirement N4).
type Receipts interface {
	// Ready tells whether there is a key to sign with.
	Ready(ctx context.Context) error
	Seal(ctx context.Context, r *seal.Receipt) ([]byte, error)
}

// canReceipt is asked before anything is sent: what can't have its receipt is not delivered.
func (x *Exporter) canReceipt(ctx context.Context) error {
	if x.cfg.Receipts == nil {
		return consumers.Permanent(errors.New("sftp.receipt is on, but this exporter has no key to sign receipts with: switch it off"))
	}
	if err := x.cfg.Receipts.Ready(ctx); err != nil {
		return consumers.Permanent(fmt.Errorf("sftp.receipt is on, but a receipt can't be signed here: %w", err))
	}
	return nil
}

// receipt signs and keeps what an upload found when it read its file back. If that fails, the delivery does; the next
// attempt finds the file on the server, reads it again and goes on from there.
func (x *Exporter) receipt(ctx context.Context, e *Export, cfg *sftp.Config, name string, up sftp.UploadResult) error {
	file, err := x.cfg.Receipts.Seal(ctx, &seal.Receipt{
		Receipt: 1, Organization: e.Organization, Export: e.ID, Destination: e.Destination,
		Address: cfg.Address(), User: cfg.User, HostKey: up.HostKey,
		Path: up.Path, Name: name, Size: up.Size, SHA256: up.SHA256, Time: x.cfg.Now().UTC().Truncate(time.Second),
	})
	if err != nil {
		return fmt.Errorf("sign the receipt: %w", err)
	}
	if _, err := x.states.KV.Put(ctx, prefixReceipt+e.ID, file); err != nil {
		return fmt.Errorf("keep the receipt of export %s: %w", e.ID, err)
	}
	e.Receipt = true
	return nil
}

// Receipt returns the signed receipt of an export, nil if it has none.
func (s States) Receipt(ctx context.Context, id string) ([]byte, error) {
	entry, err := s.KV.Get(ctx, prefixReceipt+id)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the receipt of export %s: %w", id, err)
	}
	return entry.Value(), nil
}
