package demo

import (
	"fmt"
	"iter"
	"os"
	"slices"

	"github.com/kansa-audit/kansa/producers/mapping"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

// Input is what a demo publishes.
type Input struct {
	Organizations []string
	Total         uint64
	Refused       uint64 // lines of a file that are no valid event
	Events        iter.Seq2[schema.Event, error]
}

// MadeUp is an input of n events that were made up.
func MadeUp(n uint64) Input {
	return Input{
		Organizations: sample.Organizations, Total: n,
		Events: func(yield func(schema.Event, error) bool) {
			source := sample.New(1, nil)
			for range n {
				if !yield(source.Next(), nil) {
					return
				}
			}
		},
	}
}

// File is an input of a file's events. The file is read twice: before the demo starts, to find whose
// events they are.
func File(path string, o mapping.Options) (Input, error) {
	in := Input{Events: func(yield func(schema.Event, error) bool) {
		for line, err := range lines(path, o) {
			if err == nil && (line.Err != nil || line.Skipped) {
				continue
			}
			if !yield(line.Event, err) || err != nil {
				return
			}
		}
	}}
	for line, err := range lines(path, o) {
		switch {
		case err != nil:
			return Input{}, err
		case line.Err != nil:
			in.Refused++
			continue
		}
		in.Total++
		if !slices.Contains(in.Organizations, line.Event.Organization) {
			in.Organizations = append(in.Organizations, line.Event.Organization)
		}
	}
	if in.Total == 0 {
		return Input{}, fmt.Errorf("%s holds no event (%d lines are refused): is --mapping missing?", path, in.Refused)
	}
	const most = 50
	if len(in.Organizations) > most {
		return Input{}, fmt.Errorf("%s has events of %d organizations: the demo makes a destination for each, and at most %d", path, len(in.Organizations), most)
	}
	slices.Sort(in.Organizations)
	return in, nil
}

func lines(path string, o mapping.Options) iter.Seq2[mapping.Line, error] {
	return func(yield func(mapping.Line, error) bool) {
		f, err := os.Open(path)
		if err != nil {
			yield(mapping.Line{}, fmt.Errorf("open input: %w", err))
			return
		}
		defer f.Close()
		for line, err := range mapping.Lines(f, o) {
			if err != nil {
				err = fmt.Errorf("%s: %w", path, err)
			}
			if !yield(line, err) {
				return
			}
		}
	}
}
