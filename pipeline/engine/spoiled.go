package engine

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// The library (26.7) commits a merge that found no room on the disk: a part whose files are all empty takes the
// place of those it was made of. They are still there for some minutes, as every part that was merged is, and
// the engine goes back to them by itself, but only when it starts: then it finds that the new part is no part.
// So a process that meets one that was made since it began ends at once, and its supervisor starts another. It
// must not end in order, which would remove the old ones. Whoever reads nothing meets nothing, so it also looks
// at the files now and then, often enough for the old ones.

const (
	exitSpoiled    = 75 // the status of a process that ends so
	lookForSpoiled = 30 * time.Second
)

// Codes of the exceptions by which a read meets such a part.
const (
	codeReadAfterEOF  = 32
	codeCannotReadAll = 33
	codeWrongChecksum = 40
	codeCorruptedData = 246
)

var partRead = regexp.MustCompile(`while reading from part (/.*?)/? in table `)

// spoiled returns the path of a part that can't be read, if it was made since a time.
func spoiled(e *exception, since time.Time) (path string, ok bool) {
	if !slices.Contains([]int{codeReadAfterEOF, codeCannotReadAll, codeWrongChecksum, codeCorruptedData}, e.code) {
		return "", false
	}
	m := partRead.FindStringSubmatch(e.message)
	if m == nil {
		return "", false
	}
	info, err := os.Stat(m[1])
	return m[1], err == nil && info.ModTime().After(since)
}

// emptyPart returns a part of the engine's directories that is under its name and has nothing in it, if there is one.
func (o ServeOptions) emptyPart() string {
	part := emptyPart(os.DirFS(o.Path), 0)
	if part == "" && o.Encrypted {
		part = emptyPart(os.DirFS(filepath.Join(filepath.Dir(o.Path), encryptedDir, "data")), keyHeader)
	}
	return part
}

func emptyPart(dir fs.FS, empty int64) string {
	found, _ := fs.Glob(dir, "store/*/*/*/checksums.txt") // the pattern is right
	for _, name := range found {
		part := path.Dir(name)
		if info, err := fs.Stat(dir, name); err == nil && info.Size() <= empty && !temporary.MatchString(path.Base(part)) {
			return part
		}
	}
	return ""
}

// temporary are names of what is being made or removed.
var temporary = regexp.MustCompile(`^(tmp|delete_tmp)_`)

func (h *handler) endSpoiled(part string) {
	h.log.Error("a part was spoiled as it was made, ending to go back to those before it", "part", part)
	os.Exit(exitSpoiled)
}
