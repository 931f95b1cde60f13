package api

import (
	"bufio"
	"io"

	"github.com/kansa-audit/kansa/schema/codec"
)

// marked is CSV or TSV in which a value that a spreadsheet would take for a formula begins with codec.Mark, as in exports.
type marked struct {
	from   io.Closer
	text   *bufio.Reader
	quoted bool
	// begins tells that a value begins with the next byte.
	begins bool
	mark   bool // is to be written before anything else
	last   byte
}

func newMarked(text io.ReadCloser) io.ReadCloser {
	return &marked{from: text, text: bufio.NewReaderSize(text, 64<<10)}
}

// longestSign is the length in bytes of the longest character that makes a formula.
const longestSign = len("＝")

// Read implements io.Reader.
func (m *marked) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if n > 0 && m.text.Buffered() == 0 { // the reader need not wait for the next part
			return n, nil
		}
		if m.begins {
			m.begins = false
			next, _ := m.text.Peek(longestSign) // what fails, fails again below
			m.mark = codec.Dangerous(string(next))
		}
		if m.mark {
			m.mark, p[n] = false, codec.Mark
			n++
			continue
		}
		b, err := m.text.ReadByte()
		if err != nil {
			return n, err
		}
		p[n] = b
		n++
		if b == '"' {
			// A quote within a value is doubled: it ends the value and begins another part of it.
			m.quoted = !m.quoted
			m.begins = m.quoted && m.last != '"'
		}
		m.last = b
	}
	return n, nil
}

// Close implements io.Closer.
func (m *marked) Close() error { return m.from.Close() }
