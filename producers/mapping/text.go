package mapping

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/unicode"
)

// openText returns the text of an input as UTF-8: without gzip, without a byte order mark, and decoded
// from UTF-16 where the mark says so, or else from charset (a name of the WHATWG's, empty for UTF-8).
//
// UTF-8 passes unchanged; bytes that are not UTF-8 are for the reader of a record to refuse.
func openText(input io.Reader, charset string) (*bufio.Reader, error) {
	r := bufio.NewReaderSize(input, 1<<20)
	if magic, _ := r.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		gz, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("open gzip: %w", err)
		}
		r = bufio.NewReaderSize(gz, 1<<20)
	}
	switch start, _ := r.Peek(3); {
	case bytes.HasPrefix(start, []byte("\xef\xbb\xbf")):
		_, err := r.Discard(3)
		return r, err
	case bytes.HasPrefix(start, []byte("\xff\xfe")), bytes.HasPrefix(start, []byte("\xfe\xff")):
		decoder := unicode.UTF16(unicode.LittleEndian, unicode.ExpectBOM).NewDecoder()
		return bufio.NewReaderSize(decoder.Reader(r), 1<<20), nil
	}
	if charset == "" {
		return r, nil
	}
	e, err := charsetOf(charset)
	if err != nil {
		return nil, err
	}
	return bufio.NewReaderSize(e.NewDecoder().Reader(r), 1<<20), nil
}

func charsetOf(name string) (encoding.Encoding, error) {
	e, err := htmlindex.Get(name)
	if err != nil {
		return nil, fmt.Errorf("input.charset %q is unknown: use utf-8, shift_jis, euc-jp, windows-1252, iso-8859-15 or another name of the WHATWG Encoding Standard", name)
	}
	return e, nil
}
