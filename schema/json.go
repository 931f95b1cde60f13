package schema

import (
	"encoding/binary"
	"math/bits"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
)

// maxNesting is how deep JSON may nest; encoding/json has the same bound.
const maxNesting = 10_000

// SkipJSON returns the index behind the JSON value (RFC 8259) at s[i], which begins with no white space;
// ok is false if there is none, and end is then where it goes wrong. UTF-8 is not checked.
//
// It accepts what encoding/json.Valid accepts, several times faster; every event's values pass here.
func SkipJSON(s string, i int) (end int, ok bool) { return skipValue(s, i, 0) }

// ValidJSON reports whether s is one JSON value, with white space around it or not.
func ValidJSON(s string) bool {
	end, ok := SkipJSON(s, SkipSpace(s, 0))
	return ok && SkipSpace(s, end) == len(s)
}

// SkipSpace returns the index of the first byte from i on that is no white space of JSON.
func SkipSpace(s string, i int) int {
	for i < len(s) && (s[i] == ' ' || s[i] == '\n' || s[i] == '\r' || s[i] == '\t') {
		i++
	}
	return i
}

func skipValue(s string, i, depth int) (int, bool) {
	if i >= len(s) || depth > maxNesting {
		return i, false
	}
	switch c := s[i]; c {
	case '"':
		end, _, ok := SkipJSONString(s, i)
		return end, ok
	case '{':
		return skipObject(s, i, depth+1)
	case '[':
		return skipArray(s, i, depth+1)
	case 't':
		return skipLiteral(s, i, "true")
	case 'f':
		return skipLiteral(s, i, "false")
	case 'n':
		return skipLiteral(s, i, "null")
	default:
		return skipNumber(s, i)
	}
}

func skipLiteral(s string, i int, literal string) (int, bool) {
	if len(s)-i < len(literal) {
		return len(s), false
	}
	return i + len(literal), s[i:i+len(literal)] == literal
}

func skipObject(s string, i, depth int) (end int, ok bool) {
	if i = SkipSpace(s, i+1); i < len(s) && s[i] == '}' {
		return i + 1, depth <= maxNesting
	}
	for {
		if i >= len(s) || s[i] != '"' {
			return i, false
		}
		if i, _, ok = SkipJSONString(s, i); !ok {
			return i, false
		}
		if i = SkipSpace(s, i); i >= len(s) || s[i] != ':' {
			return i, false
		}
		if i, ok = skipValue(s, SkipSpace(s, i+1), depth); !ok {
			return i, false
		}
		if i = SkipSpace(s, i); i >= len(s) || s[i] != ',' {
			break
		}
		i = SkipSpace(s, i+1)
	}
	if i >= len(s) || s[i] != '}' {
		return i, false
	}
	return i + 1, true
}

func skipArray(s string, i, depth int) (end int, ok bool) {
	if i = SkipSpace(s, i+1); i < len(s) && s[i] == ']' {
		return i + 1, depth <= maxNesting
	}
	for {
		if i, ok = skipValue(s, i, depth); !ok {
			return i, false
		}
		if i = SkipSpace(s, i); i >= len(s) || s[i] != ',' {
			break
		}
		i = SkipSpace(s, i+1)
	}
	if i >= len(s) || s[i] != ']' {
		return i, false
	}
	return i + 1, true
}

// ends marks the bytes at which a run of plain characters in a JSON string ends.
var ends = func() (t [256]bool) {
	for c := range 0x20 {
		t[c] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

// SkipJSONString returns the index behind the JSON string whose opening quote is s[i], and whether it
// has escapes.
func SkipJSONString(s string, i int) (end int, escaped, ok bool) {
	for i++; ; i++ {
		for len(s)-i >= 8 {
			n := plainBytes(binary.LittleEndian.Uint64(unsafe.Slice(unsafe.StringData(s), len(s))[i:]))
			if i += n; n < 8 {
				break
			}
		}
		for i < len(s) && !ends[s[i]] {
			i++
		}
		switch {
		case i >= len(s):
			return i, escaped, false
		case s[i] == '"':
			return i + 1, escaped, true
		case s[i] != '\\': // a control character
			return i, escaped, false
		}
		escaped = true
		if i++; i >= len(s) {
			return i, escaped, false
		}
		switch s[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		case 'u':
			for range 4 {
				if i++; i >= len(s) || !isHex(s[i]) {
					return i, escaped, false
				}
			}
		default:
			return i, escaped, false
		}
	}
}

// plainBytes is how many of eight bytes, the first of which is the lowest, come before one that ends a run.
func plainBytes(x uint64) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	quote, backslash := x^('"'*ones), x^('\\'*ones)
	// The lowest bit that is set is right; a borrow may set more above it.
	found := ((quote-ones)&^quote | (backslash-ones)&^backslash | (x-0x20*ones)&^x) & highs
	return bits.TrailingZeros64(found) / 8
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func skipNumber(s string, i int) (end int, ok bool) {
	if i < len(s) && s[i] == '-' {
		i++
	}
	first := i
	if i, ok = skipDigits(s, i); !ok || s[first] == '0' && i > first+1 {
		return first, false
	}
	if i < len(s) && s[i] == '.' {
		if i, ok = skipDigits(s, i+1); !ok {
			return i, false
		}
	}
	if i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		if i++; i < len(s) && (s[i] == '+' || s[i] == '-') {
			i++
		}
		return skipDigits(s, i)
	}
	return i, true
}

func skipDigits(s string, i int) (end int, ok bool) {
	first := i
	for i < len(s) && '0' <= s[i] && s[i] <= '9' {
		i++
	}
	return i, i > first
}

// AppendUnescaped appends the text of a valid JSON string without its quotes. Half of a surrogate pair
// becomes U+FFFD, as in encoding/json.
func AppendUnescaped(dst []byte, s string) []byte {
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 {
			return append(dst, s...)
		}
		dst = append(dst, s[:i]...)
		c := s[i+1]
		s = s[i+2:]
		switch c {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := hex4(s)
			s = s[4:]
			if utf16.IsSurrogate(r) {
				pair := rune(utf8.RuneError)
				if strings.HasPrefix(s, `\u`) {
					pair = utf16.DecodeRune(r, hex4(s[2:]))
				}
				if r = pair; r != utf8.RuneError {
					s = s[6:]
				}
			}
			dst = utf8.AppendRune(dst, r)
		default: // " \ /
			dst = append(dst, c)
		}
	}
}

func hex4(s string) (r rune) {
	for i := range 4 {
		c := rune(s[i])
		switch {
		case c >= 'a':
			c -= 'a' - 10
		case c >= 'A':
			c -= 'A' - 10
		default:
			c -= '0'
		}
		r = r<<4 | c
	}
	return r
}
