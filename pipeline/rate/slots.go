package rate

import (
	"maps"
	"sync"
)

// Slots bounds how much is open at once: of each holder, of a group of holders, and in all. A bound of 0 is none.
type Slots struct {
	each, group, all int

	mu    sync.Mutex
	of    map[string]int // by holder
	in    map[string]int // by group
	total int
}

// NewSlots returns slots with these bounds.
func NewSlots(each, group, all int) *Slots {
	return &Slots{each: each, group: group, all: all, of: map[string]int{}, in: map[string]int{}}
}

// Take takes a slot and returns what gives it back, or nil and the bound that is reached: each, organization or all.
func (s *Slots) Take(holder, group string) (release func(), reached string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.each > 0 && s.of[holder] >= s.each:
		return nil, "each"
	case s.group > 0 && s.in[group] >= s.group:
		return nil, "organization"
	case s.all > 0 && s.total >= s.all:
		return nil, "all"
	}
	s.of[holder]++
	s.in[group]++
	s.total++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		less(s.of, holder)
		less(s.in, group)
		s.total--
	}), ""
}

func less(counts map[string]int, key string) {
	if counts[key]--; counts[key] == 0 {
		delete(counts, key)
	}
}

// Refused counts what limits refused, by the name of the limit. The zero value is ready; nil counts nothing.
type Refused struct {
	mu sync.Mutex
	of map[string]uint64
}

// Add counts one. Names of limits are constants of the program: never anything that a client says.
func (r *Refused) Add(limit string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = map[string]uint64{}
	}
	r.of[limit]++
}

// Counts returns all counts.
func (r *Refused) Counts() map[string]uint64 {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.of)
}
