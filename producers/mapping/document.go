package mapping

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/kansa-audit/kansa/schema"
)

// documentReader reads records out of JSON that is not one record a line. It holds one record at a time,
// so a document can have any size. Records are numbered in their order.
type documentReader struct {
	*reader
	in *bufio.Reader
}

// values yields the values up to the end of the input or, in an array, to its closing bracket.
func (d *documentReader) values(inArray bool) error {
	for {
		c, err := d.next()
		switch {
		case errors.Is(err, io.EOF) && inArray:
			return d.record(nil, d.offset, cutOff("array"))
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case c == ',' && inArray:
			d.take()
			continue
		case c == ']' && inArray:
			d.take()
			return nil
		case c == '[' && !inArray:
			d.take()
			err = d.values(true)
		default:
			err = d.value()
		}
		if err != nil {
			return err
		}
	}
}

// value yields the record that begins here, or the records that it holds.
func (d *documentReader) value() error {
	at := d.offset
	text, state, err := d.read(maxRecord)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case err != nil && !schema.ValidJSON(string(text)):
		return d.record(text, at, cutOff("record"))
	case !state.done && text[0] == '{' && len(d.paths) > 0:
		return d.envelope(text, at)
	case !state.done:
		if err := d.skip(state); err != nil {
			return err
		}
		return d.record(text, at, tooLong())
	case text[0] == '{' && len(d.paths) > 0:
		if inner := d.recordsIn(text); inner != nil {
			for _, raw := range inner {
				if err := d.record([]byte(raw), at, nil); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return d.record(text, at, nil)
}

func (d *documentReader) record(raw []byte, at int64, fault error) error {
	d.number++
	return d.give(record{number: d.number, document: true, offset: at, size: d.offset - at, raw: raw, err: fault})
}

func cutOff(what string) *schema.Fault {
	return &schema.Fault{Problem: "the " + what + " is cut off: the input ends within it", Remedy: "give the whole document"}
}

// envelope yields the records of an object that is too large to be held. Its beginning has been read.
func (d *documentReader) envelope(beginning []byte, at int64) error {
	e := &documentReader{reader: d.reader, in: bufio.NewReaderSize(io.MultiReader(bytes.NewReader(bytes.Clone(beginning)), d.in), 1<<20)}
	d.offset = at
	e.take() // the brace
	found := false
	for {
		c, err := e.next()
		switch {
		case errors.Is(err, io.EOF):
			return d.record(nil, d.offset, cutOff("document"))
		case err != nil:
			return err
		}
		switch c {
		case '}':
			e.take()
			d.in = e.in
			if !found {
				return d.record(beginning, at, tooLong())
			}
			return d.values(false)
		case '"':
			name, _, err := e.read(maxRecord)
			if err != nil {
				return d.record(nil, d.offset, cutOff("document"))
			}
			if c, err = e.next(); err == nil && c == ':' {
				e.take()
				c, err = e.next()
			}
			if err != nil {
				return d.record(nil, d.offset, cutOff("document"))
			}
			if c == '[' && slices.Contains(d.paths, string(bytes.Trim(name, `"`))) {
				e.take()
				found = true
				err = e.values(true)
			} else {
				err = e.skip(valueState{})
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		default: // a comma, or what does not belong here
			e.take()
		}
	}
}

// next returns the next byte that is not white space, without taking it.
func (d *documentReader) next() (byte, error) {
	for {
		c, err := d.in.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return 0, io.EOF
		case err != nil:
			return 0, fmt.Errorf("read record %d: %w", d.number+1, err)
		case c == ' ' || c == '\n' || c == '\r' || c == '\t' || c == '\x1e':
			d.offset++
			continue
		}
		return c, d.in.UnreadByte()
	}
}

// take takes the byte that next returned.
func (d *documentReader) take() {
	_, _ = d.in.ReadByte() // it is buffered
	d.offset++
}

// valueState is where in a JSON value a reader is.
type valueState struct {
	depth             int
	inString, escaped bool
	begun, done       bool
}

// step takes the next byte of a value. It reports whether the byte belongs to it.
func (s *valueState) step(c byte) bool {
	switch {
	case s.escaped:
		s.escaped = false
	case s.inString:
		s.escaped = c == '\\'
		if c == '"' {
			s.inString = false
			s.done = s.depth == 0
		}
	case c == '"':
		s.inString = true
	case c == '{' || c == '[':
		s.depth++
	case c == '}' || c == ']':
		if s.depth == 0 {
			s.done = true
			return !s.begun // a bracket that closes nothing is a value of its own, and refused
		}
		s.depth--
		s.done = s.depth == 0
	case s.depth == 0 && s.begun && (c == ',' || c == ':' || c <= ' '):
		s.done = true
		return false
	}
	s.begun = true
	return true
}

// read reads a value, or as much of it as limit.
func (d *documentReader) read(limit int) (text []byte, state valueState, err error) {
	for len(text) < limit && !state.done {
		c, err := d.in.ReadByte()
		if err != nil {
			return text, state, d.failed(err)
		}
		if !state.step(c) {
			return text, state, d.in.UnreadByte()
		}
		d.offset++
		text = append(text, c)
	}
	return text, state, nil
}

// skip reads the rest of a value.
func (d *documentReader) skip(state valueState) error {
	for !state.done {
		c, err := d.in.ReadByte()
		if err != nil {
			return d.failed(err)
		}
		if !state.step(c) {
			return d.in.UnreadByte()
		}
		d.offset++
	}
	return nil
}

func (d *documentReader) failed(err error) error {
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	return fmt.Errorf("read record %d: %w", d.number+1, err)
}
