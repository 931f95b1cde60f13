package broker

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Damage is what a server found in the files of a stream that does not have its checksum any more: it cuts the
// block off there, and says so nowhere else. It knows of it until it is started again.
type Damage struct {
	Messages []uint64 `json:"msgs"` // their sequences, where it knew them
	Bytes    uint64   `json:"bytes"`
}

// Damaged returns what a stream has lost, or nil if it is whole.
func Damaged(ctx context.Context, js jetstream.JetStream, stream string) (*Damage, error) {
	// The client's own StreamInfo leaves it out.
	answer, err := js.Conn().RequestWithContext(ctx, "$JS.API.STREAM.INFO."+stream, nil)
	if err != nil {
		return nil, fmt.Errorf("ask whether stream %s is whole: %w", stream, err)
	}
	var info struct {
		State struct {
			Lost *Damage `json:"lost"`
		} `json:"state"`
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &info); err != nil {
		return nil, fmt.Errorf("ask whether stream %s is whole: %w", stream, err)
	}
	if info.Error != nil {
		return nil, fmt.Errorf("ask whether stream %s is whole: %w", stream, info.Error)
	}
	return info.State.Lost, nil
}
