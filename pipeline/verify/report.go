package verify

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// What can fail. A Fault answers to one of these, or to an error of package seal, with errors.Is.
var (
	ErrArchive  = errors.New("the archive is not as it was made")
	ErrKeys     = errors.New("the keys do not lead to each other")
	ErrFile     = errors.New("the file is not the one that was sealed")
	ErrUnsealed = errors.New("no manifest speaks of it")
	ErrMissing  = errors.New("it is missing")
	ErrChain    = errors.New("the chain of manifests is broken")
	ErrRange    = errors.New("it does not cover the range")
)

// ErrUnreadable means that verification could not be done: nothing is said about what was recorded.
var ErrUnreadable = errors.New("can't be verified")

// Fault is one thing that does not hold.
type Fault struct {
	File string `json:"file"`
	// Hour is the start of the hour, where the fault is about one.
	Hour *time.Time `json:"hour,omitempty"`
	// Row is the first row that is wrong, from 1, where that can be told.
	Row     uint64 `json:"row,omitempty"`
	Problem string `json:"problem"`

	err error
}

func (f *Fault) Error() string { return f.File + ": " + f.Problem }

// Unwrap is the kind.
func (f *Fault) Unwrap() error { return f.err }

// Series is what was found of one organization and trail: a stretch of its chain.
type Series struct {
	Organization string       `json:"organization"`
	Trail        schema.Trail `json:"trail"`
	// From and To bound recorded_at.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// First and Last are the numbers of the manifests at the ends. If First is not 1, the stretch goes
	// on from manifest First-1, which is not here, and whose text has this SHA-256.
	First     uint64 `json:"first_number"`
	Last      uint64 `json:"last_number"`
	Continues string `json:"continues,omitempty"`
	Hours     uint64 `json:"hours"`
	Rows      uint64 `json:"rows"`
	// Gaps are the intervals in which not everything was recorded, as the manifests state them; one that goes on over
	// several hours is one.
	Gaps []seal.Gap `json:"gaps"`
}

// Report is what was found.
type Report struct {
	Path  string   `json:"path"`
	Kind  Kind     `json:"kind"`
	OK    bool     `json:"ok"`
	Key   string   `json:"key"`  // that was trusted
	Keys  []string `json:"keys"` // it leads to, the oldest first
	Rows  uint64   `json:"rows"`
	Hours uint64   `json:"hours"`
	// CSVBytes were read from FileBytes.
	CSVBytes  int64 `json:"csv_bytes"`
	FileBytes int64 `json:"file_bytes"`
	// Rendered counts files that were made of partitions. They are those that the archive lists, and are not sealed.
	Rendered uint64   `json:"rendered,omitempty"`
	Series   []Series `json:"series"`
	// Event is the row that was proved, unquoted, by column; only of a proof.
	Event map[string]string `json:"event,omitempty"`
	// Receipt is what a receipt says.
	Receipt *seal.Receipt `json:"receipt,omitempty"`
	Faults  []*Fault      `json:"faults"`
	// Notes are about what is there and not sealed.
	Notes   []string `json:"notes"`
	Seconds float64  `json:"seconds"`
}

// Kind is what a path leads to.
type Kind string

// The kinds.
const (
	Archive   Kind = "archive"
	Store     Kind = "partition store"
	Partition Kind = "partition"
	Proof     Kind = "proof"
	Receipt   Kind = "receipt"
)

func newReport(path string, kind Kind) *Report {
	return &Report{Path: path, Kind: kind, Series: []Series{}, Faults: []*Fault{}, Notes: []string{}}
}

// fault adds one.
func (r *Report) fault(file string, hour *time.Time, kind error, format string, v ...any) {
	r.Faults = append(r.Faults, &Fault{File: file, Hour: hour, Problem: fmt.Sprintf(format, v...), err: kind})
}

// finish puts what several found into one order.
func (r *Report) finish(began time.Time) {
	slices.SortStableFunc(r.Faults, func(a, b *Fault) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Row, b.Row), cmp.Compare(a.Problem, b.Problem))
	})
	slices.Sort(r.Notes)
	r.OK = len(r.Faults) == 0
	r.Seconds = time.Since(began).Seconds()
}
