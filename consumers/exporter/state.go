package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
)

// State is how far an export has come.
type State string

// The states of an export. Done and Failed are final.
const (
	Waiting  State = "waiting"  // for hours of its range to close
	Running  State = "running"  // being delivered
	Retrying State = "retrying" // the last attempt failed; another comes
	Done     State = "done"
	Failed   State = "failed" // given up: trying again would meet the same error
)

// Export is the state of one export, as people see it. It holds no secret.
type Export struct {
	Request
	State    State     `json:"state"`
	Attempts uint64    `json:"attempts"`
	Error    string    `json:"error,omitempty"`
	Created  time.Time `json:"created"`
	Updated  time.Time `json:"updated"`
	// Of the archive.
	File  string `json:"file,omitempty"`
	Bytes int64  `json:"bytes,omitempty"`
	Files int    `json:"files,omitempty"`
	Rows  uint64 `json:"rows,omitempty"`
	// RowsRendered counts events of the partitions that are rendered, of RowsToRender, before anything is sent.
	RowsRendered uint64 `json:"rows_rendered,omitempty"`
	RowsToRender uint64 `json:"rows_to_render,omitempty"`
	// Sent counts the bytes of the attempt that is running.
	Sent int64 `json:"sent,omitempty"`
	// Note is what else is to be known of the delivery.
	Note string `json:"note,omitempty"`
	// Receipt tells that a signed one is kept; see States.Receipt.
	Receipt bool `json:"receipt,omitempty"`
	// Link ends then.
	Expires *time.Time `json:"expires,omitempty"`
	// Revoked links open nothing.
	Revoked *time.Time `json:"revoked,omitempty"`
	// Promise of the link, if it is delivered by one.
	Promise
}

// States keeps exports in a key-value bucket.
type States struct{ KV jetstream.KeyValue }

const (
	prefixExport  = "export."
	prefixReceipt = "receipt." // + id: the signed receipt
	prefixNext    = "next."    // + organization.destination: the start of the first period that is not delivered
	prefixHealth  = "health."  // + organization.destination
	prefixSame    = "same."    // + a hash of what is asked for: the id of the export that did
	prefixQuota   = "quota."   // + organization.trail.day: the ids of the exports of a day
	prefixArea    = "area."    // + the id of an export that has, or may have, a working area
)

// Get returns the state of an export, and false if there is none.
func (s States) Get(ctx context.Context, id string) (Export, bool, error) {
	entry, err := s.KV.Get(ctx, prefixExport+id)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return Export{}, false, nil
	}
	if err != nil {
		return Export{}, false, fmt.Errorf("read the state of export %s: %w", id, err)
	}
	var e Export
	if err := json.Unmarshal(entry.Value(), &e); err != nil {
		return Export{}, false, fmt.Errorf("read the state of export %s: %w", id, err)
	}
	return e, true, nil
}

// Put keeps the state of an export, unless a final one is kept already: a request that was redelivered may be
// worked on twice at once, and what comes of the second does not undo what came of the first. Only that it was
// delivered after all replaces that it was given up, and that its links were revoked is added.
func (s States) Put(ctx context.Context, e Export) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode the state of export %s: %w", e.ID, err)
	}
	for {
		var old Export
		revision := uint64(0)
		entry, err := s.KV.Get(ctx, prefixExport+e.ID)
		if err == nil {
			revision, err = entry.Revision(), json.Unmarshal(entry.Value(), &old)
		} else if errors.Is(err, jetstream.ErrKeyNotFound) {
			err = nil
		}
		if err == nil {
			revokes := e.Revoked != nil && old.Revoked == nil && e.State == old.State
			if (old.State == Done || old.State == Failed && e.State != Done) && !revokes {
				return nil
			}
			_, err = consumers.Replace(ctx, s.KV, prefixExport+e.ID, data, revision)
		}
		if !errors.Is(err, consumers.ErrReplaced) { // another was faster
			if err != nil {
				return fmt.Errorf("keep the state of export %s: %w", e.ID, err)
			}
			return nil
		}
	}
}

// List returns all exports, the newest first.
func (s States) List(ctx context.Context) ([]Export, error) {
	keys, err := s.KV.ListKeysFiltered(ctx, prefixExport+">")
	if err != nil {
		return nil, fmt.Errorf("list exports: %w", err)
	}
	var all []Export
	for key := range keys.Keys() {
		e, ok, err := s.Get(ctx, key[len(prefixExport):])
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, e)
		}
	}
	if err := ctx.Err(); err != nil { // the list of keys ends early with it, and says nothing
		return nil, fmt.Errorf("list exports: %w", err)
	}
	slices.SortFunc(all, func(a, b Export) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// next is where the first period of a destination begins that is not delivered, zero before its first.
func (s States) next(ctx context.Context, organization, destination string) (time.Time, error) {
	entry, err := s.KV.Get(ctx, prefixNext+organization+"."+destination)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return time.Time{}, nil
	}
	var t time.Time
	if err == nil {
		t, err = time.Parse(time.RFC3339, string(entry.Value()))
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read how far destination %s/%s has come: %w", organization, destination, err)
	}
	return t, nil
}

// forgetDestination forgets how far a destination has come and how it was doing.
func (s States) forgetDestination(ctx context.Context, id scheduleID) error {
	for _, prefix := range []string{prefixNext, prefixHealth} {
		if err := forget(ctx, s.KV, prefix+id.organization+"."+id.name); err != nil {
			return err
		}
	}
	return nil
}

func (s States) setNext(ctx context.Context, organization, destination string, t time.Time) error {
	if _, err := s.KV.PutString(ctx, prefixNext+organization+"."+destination, t.UTC().Format(time.RFC3339)); err != nil {
		return fmt.Errorf("keep how far destination %s/%s has come: %w", organization, destination, err)
	}
	return nil
}

// Wait returns the export of an id when its state is final. seen is called with each state before.
func (s States) Wait(ctx context.Context, id string, seen func(Export)) (Export, error) {
	watch, err := s.KV.Watch(ctx, prefixExport+id)
	if err != nil {
		return Export{}, fmt.Errorf("follow export %s: %w", id, err)
	}
	defer watch.Stop() //nolint:errcheck // nothing depends on it any more
	for {
		select {
		case <-ctx.Done():
			return Export{}, fmt.Errorf("wait for export %s: %w", id, ctx.Err())
		case entry := <-watch.Updates():
			if entry == nil { // what was there is told; the rest is to come
				continue
			}
			var e Export
			if err := json.Unmarshal(entry.Value(), &e); err != nil {
				return Export{}, fmt.Errorf("read the state of export %s: %w", id, err)
			}
			if e.State == Done || e.State == Failed {
				return e, nil
			}
			seen(e)
		}
	}
}
