package archive

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kansa-audit/kansa/schema"
)

// Limits of a name: ZIP's own, and that of a path component on common file systems.
const (
	maxName      = 4096
	maxComponent = 255
)

// ErrName marks a name that would not unpack safely, or not everywhere.
var ErrName = errors.New("archive: unsafe entry name")

// CheckName tells whether an entry may have this name: relative, inside the directory it is unpacked
// in, and possible on Windows.
func CheckName(name string) error {
	if reason := nameFault(name); reason != "" {
		return fmt.Errorf("%w %q: %s", ErrName, name, reason)
	}
	return nil
}

func nameFault(name string) string {
	switch {
	case name == "":
		return "it is empty"
	case len(name) > maxName:
		return fmt.Sprintf("it has %d bytes, at most %d are allowed", len(name), maxName)
	case !utf8.ValidString(name):
		return "it is not UTF-8"
	case strings.HasPrefix(name, "/"):
		return "it must be relative"
	case strings.HasSuffix(name, "/"):
		return "it names a directory; an archive has only files"
	}
	for component := range strings.SplitSeq(name, "/") {
		if reason := componentFault(component); reason != "" {
			return reason
		}
	}
	return ""
}

func componentFault(c string) string {
	switch {
	case c == "":
		return "it has an empty component"
	case c == "." || c == "..":
		return fmt.Sprintf("the component %q may lead out of the directory", c)
	case len(c) > maxComponent:
		return fmt.Sprintf("a component has %d bytes, at most %d are allowed", len(c), maxComponent)
	case strings.HasSuffix(c, ".") || strings.HasSuffix(c, " "):
		return fmt.Sprintf("the component %q ends in a dot or a space, which Windows drops", c)
	}
	for _, r := range c {
		if unicode.IsControl(r) || strings.ContainsRune(`<>:"|?*\`, r) {
			return fmt.Sprintf("the character %q is not allowed on Windows", r)
		}
	}
	if reserved(c) {
		return fmt.Sprintf("%q is a device on Windows", c)
	}
	return ""
}

// reserved reports the names of devices, which Windows takes with any extension.
func reserved(c string) bool {
	stem, _, _ := strings.Cut(c, ".")
	return schema.IsWindowsDevice(strings.TrimRight(stem, " "))
}

// checkNames checks each name and that no two meet when unpacked, also where upper and lower case
// are one, or where one name would have to be a file and a directory.
func checkNames(entries []Entry) error {
	files := make(map[string]string, len(entries))
	for i := range entries {
		name := entries[i].Name
		if err := CheckName(name); err != nil {
			return err
		}
		key := fold(name)
		if other, ok := files[key]; ok {
			return fmt.Errorf("%w %q: it meets %q, which is in the archive already", ErrName, name, other)
		}
		files[key] = name
	}
	for i := range entries {
		name := entries[i].Name
		key := fold(name)
		for at := strings.LastIndexByte(key, '/'); at > 0; at = strings.LastIndexByte(key, '/') {
			key = key[:at]
			if other, ok := files[key]; ok {
				return fmt.Errorf("%w %q: %q is a file in the archive", ErrName, name, other)
			}
		}
	}
	return nil
}

// fold maps letters that differ only in case to one of them.
func fold(s string) string { return strings.ToLower(strings.ToUpper(s)) }
