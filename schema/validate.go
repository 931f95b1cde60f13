package schema

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
	"unsafe"
)

// ErrInvalid is what every refused event answers to with errors.Is.
var ErrInvalid = errors.New("invalid event")

// Fault is one thing that is wrong with an event: where, what was there, what would be right.
type Fault struct {
	Field   string `json:"field,omitempty"`
	Value   string `json:"value,omitempty"` // as Error prints it: cut after some characters
	Problem string `json:"problem"`
	Remedy  string `json:"remedy,omitempty"`
}

// maxShown is how much of a faulty value an error repeats.
const maxShown = 64

func (f *Fault) Error() string {
	var b strings.Builder
	if f.Field != "" {
		// It may be a name that someone else chose: of an attribute, or of a field that is none.
		if len(f.Field) > maxShown+len("attributes.") {
			b.WriteString(shown(f.Field))
		} else {
			b.WriteString(f.Field)
		}
		b.WriteByte(' ')
	}
	if f.Value != "" {
		b.WriteString(shown(f.Value))
		b.WriteByte(' ')
	}
	b.WriteString(f.Problem)
	if f.Remedy != "" {
		b.WriteString(": ")
		b.WriteString(f.Remedy)
	}
	return b.String()
}

// Is makes errors.Is(fault, ErrInvalid) hold.
func (f *Fault) Is(target error) bool { return target == ErrInvalid }

func shown(v string) string {
	if len(v) > maxShown {
		return strconv.QuoteToASCII(v[:maxShown]) + "…"
	}
	return strconv.Quote(v)
}

// MaxFaults is how many faults of one event are told. The text of them all has to fit into the header of
// a dead letter, of which the broker takes 64 KiB, or an event with thousands of bad attributes could
// neither be stored nor be put aside.
const MaxFaults = 32

// ValidationError holds the faults of one event.
type ValidationError struct {
	Faults []*Fault
	More   int // faults beyond the first MaxFaults
}

// Add adds f, if it is one.
func (e *ValidationError) Add(f *Fault) {
	switch {
	case f == nil:
	case len(e.Faults) < MaxFaults:
		e.Faults = append(e.Faults, f)
	default:
		e.More++
	}
}

func (e *ValidationError) Error() string {
	parts := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		parts[i] = f.Error()
	}
	if e.More > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", e.More))
	}
	return strings.Join(parts, "; ")
}

// Is makes errors.Is(err, ErrInvalid) hold.
func (e *ValidationError) Is(target error) bool { return target == ErrInvalid }

// Validate checks e against every rule and returns a [*ValidationError] with one fault for each
// thing that is wrong, or nil. The faults are in the order of Fields, those of attributes in that of their
// names. now is the clock of the one who checks.
func (e *Event) Validate(now time.Time) error { return e.validate(now, false) }

// ValidateUTF8 is Validate for an event all of whose texts are known to be UTF-8.
func (e *Event) ValidateUTF8(now time.Time) error { return e.validate(now, true) }

// valid reports whether e breaks no rule, which is what nearly every event does; what is wrong with the others
// takes longer to say. isUTF8 says that all texts are known to be UTF-8.
func (e *Event) valid(now time.Time, isUTF8 bool) bool {
	if CheckOrganization(e.Organization) != nil || !e.Trail.Valid() || CheckTime(e.OccurredAt, now) != nil {
		return false
	}
	size := 0
	for i := range plain {
		v := *(*string)(unsafe.Add(unsafe.Pointer(e), plain[i].offset))
		size += len(v)
		if len(v) > plain[i].maxBytes || !isUTF8 && !IsASCII(v) && !utf8.ValidString(v) {
			return false
		}
	}
	for _, f := range special {
		v := f.Text(e)
		size += len(v)
		if f.checkText(v, isUTF8) != nil {
			return false
		}
	}
	for k, v := range e.Attributes {
		size += len(k) + len(v)
		if CheckAttribute(k, v) != nil {
			return false
		}
	}
	return CheckAttributeCount(len(e.Attributes)) == nil && CheckSize(size) == nil
}

func (e *Event) validate(now time.Time, isUTF8 bool) error {
	if e.valid(now, isUTF8) {
		return nil
	}
	var faults ValidationError
	faults.Add(CheckOrganization(e.Organization))
	faults.Add(CheckTrail(e.Trail))
	size := 0
	for i := range Fields {
		switch f := &Fields[i]; f.Kind {
		case KindID: // any is good
		case KindTime:
			faults.Add(CheckTime(e.OccurredAt, now))
		case KindText, KindJSON:
			v := f.Text(e)
			size += len(v)
			faults.Add(f.checkText(v, isUTF8))
		case KindMap:
			faults.Add(CheckAttributeCount(len(e.Attributes)))
			var bad []string
			for k, v := range e.Attributes {
				size += len(k) + len(v)
				if CheckAttribute(k, v) != nil {
					bad = append(bad, k)
				}
			}
			slices.Sort(bad) // the same event has the same faults in the same order
			for _, k := range bad {
				faults.Add(CheckAttribute(k, e.Attributes[k]))
			}
		}
	}
	faults.Add(CheckSize(size))
	if len(faults.Faults) == 0 {
		return nil
	}
	out := faults // so that only an event with faults costs memory
	return &out
}

// CheckOrganization applies the rules of an organization's name, which is a token of subjects, keys
// and paths.
func CheckOrganization(s string) *Fault {
	if s == "" {
		return &Fault{Field: "organization", Problem: "is missing", Remedy: "name the organization the event belongs to"}
	}
	if !validToken(s) {
		return &Fault{Field: "organization", Value: s, Problem: "is no name of an organization", Remedy: "use 1 to 64 of A-Z a-z 0-9 _ -"}
	}
	if reserved(s) {
		return &Fault{
			Field: "organization", Value: s, Problem: "is the name of something else",
			Remedy: "use none of keys, con, prn, aux, nul, com0 to com9, lpt0 to lpt9, in upper or lower case",
		}
	}
	return nil
}

// reserved reports names that no folder of partitions can have: where the sealing keys are, and the devices of Windows,
// where an archive could not be unpacked.
func reserved(s string) bool { return strings.EqualFold(s, "keys") || IsWindowsDevice(s) }

// IsWindowsDevice reports the names that no file or folder can have on Windows, whatever the case. A file's extension
// does not help: it is to be cut off before.
func IsWindowsDevice(s string) bool {
	for _, device := range [...]string{"con", "prn", "aux", "nul", "conin$", "conout$"} { // no copy in lower case: each event's organization comes here
		if len(s) == len(device) && strings.EqualFold(s, device) {
			return true
		}
	}
	if len(s) < 4 || !strings.EqualFold(s[:3], "com") && !strings.EqualFold(s[:3], "lpt") {
		return false
	}
	return utf8.RuneCountInString(s[3:]) == 1 && strings.Contains("0123456789¹²³", s[3:])
}

// CheckReserved refuses the names that only Kansa itself may use. Every entry point applies it to what others publish, and the
// writer again to what is in the stream. Upper case, invisible characters and letters that look the same make no difference, so that
// nothing looks like a record of the system where a format has no column recorded_by.
func CheckReserved(organization, source string) *Fault {
	switch {
	case strings.EqualFold(organization, SystemOrganization):
		return &Fault{Field: "organization", Value: organization, Problem: "is reserved for Kansa itself", Remedy: "use the name of your own organization"}
	case len(source) >= len(SystemSource) && looksLikeSystem(strings.TrimSpace(source)):
		return &Fault{Field: "source", Value: source, Problem: "is reserved for Kansa itself", Remedy: "name the service that publishes the event"}
	}
	return nil
}

// looksLikeSystem tells whether a source reads as the system's. Of most sources it looks at one character.
func looksLikeSystem(source string) bool {
	rest := SystemSource
	for _, r := range source {
		switch {
		case r >= utf8.RuneSelf && unicode.In(r, unicode.Cf, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point):
		case rest == "" || latin(r) != rune(rest[0]):
			return false
		default:
			rest = rest[1:]
		}
	}
	return rest == ""
}

// latin is the small letter that a character looks like, as far as SystemSource has it.
func latin(r rune) rune {
	switch {
	case r < utf8.RuneSelf:
		return unicode.ToLower(r)
	case r >= 'Ａ' && r <= 'ｚ': // full width
		return unicode.ToLower(r - 'Ａ' + 'A')
	case r >= 0x1D400 && r < 0x1D6A4: // mathematical alphabets, each of 26 capital and 26 small letters
		return 'a' + (r-0x1D400)%26
	case r >= 'Ⓐ' && r <= 'ⓩ':
		return 'a' + (r-'Ⓐ')%26
	}
	for like, all := range lookalikes {
		if strings.ContainsRune(all, r) {
			return like
		}
	}
	return r
}

// lookalikes are letters of other scripts, small capitals, and signs for units, by the letter that they look like.
var lookalikes = map[rune]string{
	'k': "\u043a\u041a\u03ba\u039a\u0138\u1d0b\u212a\u2c95\u2c94",
	'a': "\u0430\u0410\u03b1\u0391\u0251\u1d00\u237a\u13aa\uff41",
	'n': "\u0578\u057c\u0274\u039d\u2c9a\u207f\u14f9",
	's': "\u0455\u0405\ua731\u017f\u01bd\u13da\u054f",
}

// CheckTrail applies the rules of a trail.
func CheckTrail(t Trail) *Fault {
	if t == "" {
		return &Fault{Field: "trail", Problem: "is missing", Remedy: "use activity or access"}
	}
	if !t.Valid() {
		return &Fault{Field: "trail", Value: string(t), Problem: "is no trail", Remedy: "use activity or access"}
	}
	return nil
}

func validToken(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// Disagreement is the fault of an event whose body names another organization or trail than the
// subject it came on.
func Disagreement(field, body, subject string) *Fault {
	return &Fault{
		Field: field, Value: body, Problem: fmt.Sprintf("disagrees with the subject, which says %q", subject),
		Remedy: "publish the event on the subject of its own organization and trail",
	}
}
