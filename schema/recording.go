package schema

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Where the switches of the trails are: in a bucket of their own, a document for each organization that ever turned
// one, by its name. Publishers may read their own, so nothing else lies there. Whenever one is stored, its sequence is
// published on SubjectRecording, in HeaderStored.
const (
	RecordingBucket  = "kansa_recording"
	RecordingStream  = "KV_" + RecordingBucket
	RecordingKeys    = "$KV." + RecordingBucket // + .<org>: the subject of a document
	SubjectRecording = "audit.recording"        // + .<org>
	HeaderStored     = "Nats-Sequence"
)

// JetStreamAPI is what the subjects of JetStream's API begin with, by the prefix or the domain that a client was given.
func JetStreamAPI(prefix, domain string) string {
	switch {
	case prefix != "":
		return strings.TrimSuffix(prefix, ".") + "."
	case domain != "":
		return "$JS." + domain + ".API."
	}
	return "$JS.API."
}

// RecordingDelay is the time from switching a trail on to the first event that is recorded again: whoever was not told
// meanwhile asks before it is over.
const RecordingDelay = 2 * time.Second

// Recording says what an organization records.
type Recording struct {
	Version int `json:"version"`
	// HIPAA holds every trail on.
	HIPAA bool `json:"hipaa"`
	// By is who stored the document.
	By string `json:"by,omitempty"`
	// Turns are those of each trail's switch, in their order. None are ever taken back; a trail that has none is on.
	Turns map[Trail][]Turn `json:"turns"`

	gaps map[Trail][]RecordingGap
}

// recordingVersion is that of the documents this program writes.
const recordingVersion = 1

// Turn is one turn of a switch.
type Turn struct {
	On bool `json:"on"`
	// At is when the broker stored it. The document that stores it can't say, for it is the document's own time.
	At     time.Time `json:"at,omitzero"`
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
}

// RecordingGap is an interval in which a trail was switched off: what the broker stored from From on, and before To, is
// not recorded.
type RecordingGap struct {
	From time.Time `json:"from"`
	// To is zero while the trail is off.
	To     time.Time `json:"to,omitzero"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

// ParseRecording reads a document that the broker stored at a time. Without one, everything is recorded.
func ParseRecording(data []byte, stored time.Time) (*Recording, error) {
	r := &Recording{Version: recordingVersion}
	if len(data) > 0 {
		if err := json.Unmarshal(data, r); err != nil {
			return nil, fmt.Errorf("read the switches of the trails: %w", err)
		}
		if r.Version != recordingVersion {
			return nil, fmt.Errorf("read the switches of the trails: they have version %d, this program knows %d: use a newer one", r.Version, recordingVersion)
		}
	}
	if r.Turns == nil {
		r.Turns = map[Trail][]Turn{}
	}
	r.gaps = map[Trail][]RecordingGap{}
	for trail, turns := range r.Turns {
		for i := range turns {
			if turns[i].At.IsZero() {
				turns[i].At = stored
			}
			// As exactly as events are recorded.
			turns[i].At = turns[i].At.UTC().Truncate(time.Microsecond)
		}
		r.gaps[trail] = gapsOf(turns)
	}
	return r, nil
}

func gapsOf(turns []Turn) []RecordingGap {
	var gaps []RecordingGap
	for _, t := range turns {
		n := len(gaps)
		switch {
		case t.On && n > 0 && gaps[n-1].To.IsZero():
			gaps[n-1].To = t.At.Add(RecordingDelay)
		case !t.On && (n == 0 || !gaps[n-1].To.IsZero()):
			// Switched off again before it began.
			if n > 0 && gaps[n-1].To.After(t.At) {
				gaps[n-1].To = t.At
			}
			gaps = append(gaps, RecordingGap{From: t.At, By: t.By, Reason: t.Reason})
		}
	}
	return slices.DeleteFunc(gaps, func(g RecordingGap) bool { return g.To.Equal(g.From) })
}

// Encode is the document. Turns that have no time are of the moment at which the broker stores it.
func (r *Recording) Encode() ([]byte, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode the switches of the trails: %w", err)
	}
	return data, nil
}

// On tells whether a trail's switch is on. What is recorded from when, the gaps say.
func (r *Recording) On(trail Trail) bool {
	turns := r.Turns[trail]
	return len(turns) == 0 || turns[len(turns)-1].On
}

// Turn turns the switch of a trail, if it is not as it should be.
func (r *Recording) Turn(trail Trail, on bool, by, reason string) {
	if r.On(trail) != on {
		r.Turns[trail] = append(r.Turns[trail], Turn{On: on, By: by, Reason: reason})
	}
}

// Gaps are those of a trail, in their order. They are not to be changed.
func (r *Recording) Gaps(trail Trail) []RecordingGap { return r.gaps[trail] }

// Off tells whether what the broker stored at a time is left out.
func (r *Recording) Off(trail Trail, at time.Time) bool {
	for _, g := range r.gaps[trail] {
		if !at.Before(g.From) && (g.To.IsZero() || at.Before(g.To)) {
			return true
		}
	}
	return false
}
