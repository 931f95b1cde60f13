package schema

import (
	"fmt"
	"time"
)

// Partition names the events of one organization, trail and hour. The hour is one of recorded_at,
// begins at Hour and is Length long; it is one hour unless the pipeline is set up otherwise.
type Partition struct {
	Organization string        `json:"organization"`
	Trail        Trail         `json:"trail"`
	Hour         time.Time     `json:"hour"`
	Length       time.Duration `json:"-"`
}

// End is the instant at which the hour ends; it does not belong to it.
func (p Partition) End() time.Time { return p.Hour.Add(p.Length) }

// Path is the partition's path without an extension: <org>/<trail>/2026/11/22/04. Hours that are not
// one hour long carry their minute and second: …/22/04-05-30.
func (p Partition) Path() string {
	layout := "2006/01/02/15"
	if p.Length != time.Hour {
		layout = "2006/01/02/15-04-05"
	}
	return fmt.Sprintf("%s/%s/%s", p.Organization, p.Trail, p.Hour.UTC().Format(layout))
}

// What the names of a partition's files end in.
const (
	CSVSuffix      = ".csv.gz"
	ManifestSuffix = ".manifest"
	RemovedSuffix  = ".removed"
)

// CSVKey is where the partition lies in the partition store.
func (p Partition) CSVKey() string { return p.Path() + CSVSuffix }

// ManifestKey is where its manifest lies.
func (p Partition) ManifestKey() string { return p.Path() + ManifestSuffix }

// RemovedKey is where the statement lies that its file was removed on purpose.
func (p Partition) RemovedKey() string { return p.Path() + RemovedSuffix }

func (p Partition) String() string { return p.Path() }
