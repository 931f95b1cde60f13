package archive

import (
	"encoding/binary"
	"math"
	"slices"
	"time"
)

// The records of a ZIP file (PKWARE APPNOTE 6.3.9), as far as an archive of ours has them.
const (
	sigLocal       = 0x04034b50
	sigDirectory   = 0x02014b50
	sigEnd         = 0x06054b50
	sigEnd64       = 0x06064b50
	sigLocator64   = 0x07064b50
	localFixed     = 30
	directoryFixed = 46
	endRecords     = 56 + 20 + 22 // all three of them
	extraZip64     = 0x0001
	extraTime      = 0x5455 // "UT": seconds since 1970, so that no reader guesses a time zone
	timeExtraSize  = 9
	flagUTF8       = 1 << 11
	version20      = 20 // deflate
	version45      = 45 // Zip64
	madeByUnix     = 3 << 8
	fileMode       = 0o100644 // a regular file
	max16          = math.MaxUint16
	max32          = math.MaxUint32
)

var le = binary.LittleEndian

// bigSizes tells whether an entry's sizes need Zip64. The largest value of a field is the mark for
// "look in the extra field", so it can not stand for itself.
func bigSizes(e *Entry) bool { return e.CompressedSize >= max32 || e.UncompressedSize >= max32 }

func localHeaderSize(e *Entry) int {
	n := localFixed + len(e.Name)
	if bigSizes(e) {
		n += 4 + 16
	}
	if hasTime(e) {
		n += timeExtraSize
	}
	return n
}

// hasTime: the time extra holds a signed 32-bit number of seconds. A reader falls back to the
// MS-DOS time for others.
func hasTime(e *Entry) bool {
	s := e.Modified.Unix()
	return !e.Modified.IsZero() && s >= 0 && s <= math.MaxInt32
}

func appendLocalHeader(b []byte, e *Entry) []byte {
	date, clock := dosTime(e.Modified)
	big := bigSizes(e)
	extra := localHeaderSize(e) - localFixed - len(e.Name)
	b = le.AppendUint32(b, sigLocal)
	b = le.AppendUint16(b, needed(big))
	b = le.AppendUint16(b, flagUTF8)
	b = le.AppendUint16(b, uint16(e.Method))
	b = le.AppendUint16(b, clock)
	b = le.AppendUint16(b, date)
	b = le.AppendUint32(b, e.CRC32)
	b = appendSizes(b, e, big)
	b = le.AppendUint16(b, uint16(len(e.Name)))
	b = le.AppendUint16(b, uint16(extra))
	b = append(b, e.Name...)
	if big {
		b = le.AppendUint16(b, extraZip64)
		b = le.AppendUint16(b, 16)
		b = le.AppendUint64(b, uint64(e.UncompressedSize))
		b = le.AppendUint64(b, uint64(e.CompressedSize))
	}
	return appendTime(b, e)
}

// appendDirectory adds the central directory, which starts at offset at, and the end records.
func appendDirectory(b []byte, entries []Entry, offsets []int64, at int64) []byte {
	need := endRecords
	for i := range entries {
		need += directoryFixed + 4 + 24 + timeExtraSize + len(entries[i].Name)
	}
	b = slices.Grow(b, need)
	for i := range entries {
		b = appendDirectoryHeader(b, &entries[i], offsets[i])
	}
	count, size := uint64(len(entries)), uint64(len(b))
	end := uint64(at) + size
	if count >= max16 || size >= max32 || at >= max32 {
		b = le.AppendUint32(b, sigEnd64)
		b = le.AppendUint64(b, 44) // the rest of this record
		b = le.AppendUint16(b, madeByUnix|version45)
		b = le.AppendUint16(b, version45)
		b = le.AppendUint32(b, 0) // this disk
		b = le.AppendUint32(b, 0) // the directory's disk
		b = le.AppendUint64(b, count)
		b = le.AppendUint64(b, count)
		b = le.AppendUint64(b, size)
		b = le.AppendUint64(b, uint64(at))
		b = le.AppendUint32(b, sigLocator64)
		b = le.AppendUint32(b, 0)
		b = le.AppendUint64(b, end)
		b = le.AppendUint32(b, 1) // disks in all
	}
	b = le.AppendUint32(b, sigEnd)
	b = le.AppendUint32(b, 0) // this disk, and the directory's
	b = le.AppendUint16(b, uint16(min(count, max16)))
	b = le.AppendUint16(b, uint16(min(count, max16)))
	b = le.AppendUint32(b, uint32(min(size, max32)))
	b = le.AppendUint32(b, uint32(min(uint64(at), max32)))
	return le.AppendUint16(b, 0) // no comment
}

func appendDirectoryHeader(b []byte, e *Entry, offset int64) []byte {
	date, clock := dosTime(e.Modified)
	// One rule for all three numbers, as the standard library does it: readers differ in how they
	// take an extra field that holds only some of them.
	big := bigSizes(e) || offset >= max32
	extra := 0
	if big {
		extra += 4 + 24
	}
	if hasTime(e) {
		extra += timeExtraSize
	}
	b = le.AppendUint32(b, sigDirectory)
	b = le.AppendUint16(b, madeByUnix|needed(big))
	b = le.AppendUint16(b, needed(big))
	b = le.AppendUint16(b, flagUTF8)
	b = le.AppendUint16(b, uint16(e.Method))
	b = le.AppendUint16(b, clock)
	b = le.AppendUint16(b, date)
	b = le.AppendUint32(b, e.CRC32)
	b = appendSizes(b, e, big)
	b = le.AppendUint16(b, uint16(len(e.Name)))
	b = le.AppendUint16(b, uint16(extra))
	b = le.AppendUint16(b, 0) // comment
	b = le.AppendUint16(b, 0) // disk
	b = le.AppendUint16(b, 0) // internal attributes
	b = le.AppendUint32(b, fileMode<<16)
	if big {
		b = le.AppendUint32(b, max32)
	} else {
		b = le.AppendUint32(b, uint32(offset))
	}
	b = append(b, e.Name...)
	if big {
		b = le.AppendUint16(b, extraZip64)
		b = le.AppendUint16(b, 24)
		b = le.AppendUint64(b, uint64(e.UncompressedSize))
		b = le.AppendUint64(b, uint64(e.CompressedSize))
		b = le.AppendUint64(b, uint64(offset))
	}
	return appendTime(b, e)
}

func appendSizes(b []byte, e *Entry, big bool) []byte {
	if big {
		b = le.AppendUint32(b, max32)
		return le.AppendUint32(b, max32)
	}
	b = le.AppendUint32(b, uint32(e.CompressedSize))
	return le.AppendUint32(b, uint32(e.UncompressedSize))
}

func appendTime(b []byte, e *Entry) []byte {
	if !hasTime(e) {
		return b
	}
	b = le.AppendUint16(b, extraTime)
	b = le.AppendUint16(b, timeExtraSize-4)
	b = append(b, 1) // only the time of modification
	return le.AppendUint32(b, uint32(e.Modified.Unix()))
}

func needed(big bool) uint16 {
	if big {
		return version45
	}
	return version20
}

// dosTime gives the date and time of the fixed fields, in UTC, held within what they can say.
func dosTime(t time.Time) (date, clock uint16) {
	t = t.UTC()
	switch y := t.Year(); {
	case y < 1980:
		t = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	case y > 2107:
		t = time.Date(2107, 12, 31, 23, 59, 58, 0, time.UTC)
	}
	date = uint16(t.Day() + int(t.Month())<<5 + (t.Year()-1980)<<9)
	clock = uint16(t.Second()/2 + t.Minute()<<5 + t.Hour()<<11)
	return date, clock
}
