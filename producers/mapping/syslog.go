package mapping

import (
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"
)

var errNotSyslog = errors.New("does not begin as a line of syslog does: <PRI> and a version (RFC 5424), or a timestamp (RFC 3164, log files)")

var (
	syslogPriority = regexp.MustCompile(`^<(\d{1,3})>`)
	// A timestamp as in log files: RFC 3339, or month, day and time without a year.
	syslogTime = regexp.MustCompile(`^(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*|[A-Z][a-z]{2} [ \d]\d(?: \d{4})? \d\d:\d\d:\d\d(?:\.\d+)?) (.*)$`)
	syslogTag  = regexp.MustCompile(`^([^\s:\[\]]+)(?:\[([^\]]*)\])?: ?(.*)$`)
)

// syslog adds the parts of a line of syslog.
func syslog(line string, o *object) error {
	rest := line
	if m := syslogPriority.FindStringSubmatch(line); m != nil {
		priority, _ := strconv.Atoi(m[1]) // digits
		if priority > 191 {
			return errNotSyslog
		}
		o.add("priority", json.RawMessage(strconv.Itoa(priority)))
		o.add("facility", json.RawMessage(strconv.Itoa(priority/8)))
		o.add("severity", json.RawMessage(strconv.Itoa(priority%8)))
		rest = line[len(m[0]):]
		if version, after, ok := strings.Cut(rest, " "); ok && len(version) > 0 && len(version) <= 2 && version[0] >= '1' && version[0] <= '9' {
			if _, err := strconv.Atoi(version); err == nil {
				o.add("version", json.RawMessage(version))
				return syslog5424(after, o)
			}
		}
	}
	m := syslogTime.FindStringSubmatch(rest)
	if m == nil {
		return errNotSyslog
	}
	o.add("timestamp", m[1])
	rest = m[2]
	// The host is missing in what local programs send; then the tag, which ends in a colon, comes first.
	if host, after, ok := strings.Cut(rest, " "); ok && !strings.HasSuffix(host, ":") {
		o.add("host", host)
		rest = strings.TrimLeft(after, " ")
	}
	if m := syslogTag.FindStringSubmatch(rest); m != nil {
		o.add("app", m[1])
		if m[2] != "" {
			o.add("pid", m[2])
		}
		rest = m[3]
	}
	o.add("message", rest)
	return nil
}

// syslog5424 adds what follows the version (RFC 5424, section 6).
func syslog5424(rest string, o *object) error {
	for _, name := range []string{"timestamp", "host", "app", "pid", "msgid"} {
		value, after, ok := strings.Cut(rest, " ")
		if !ok {
			return errNotSyslog
		}
		if value != "-" {
			o.add(name, value)
		}
		rest = after
	}
	if strings.HasPrefix(rest, "-") {
		rest = rest[1:]
	} else {
		var data object
		for strings.HasPrefix(rest, "[") {
			id, params, after, ok := structured(rest[1:])
			if !ok {
				return errNotSyslog
			}
			text, err := params.json(true) // a name may be repeated (section 6.3.3)
			if err != nil {
				return err
			}
			data.add(id, json.RawMessage(text))
			rest = after
		}
		text, err := data.json(true)
		if err != nil {
			return err
		}
		o.add("data", json.RawMessage(text))
	}
	o.add("message", strings.TrimPrefix(strings.TrimPrefix(rest, " "), "\ufeff"))
	return nil
}

// structured reads an element of structured data behind its bracket.
func structured(s string) (id string, params object, rest string, ok bool) {
	end := strings.IndexAny(s, " ]")
	if end <= 0 {
		return "", params, "", false
	}
	id, s = s[:end], s[end:]
	for {
		if strings.HasPrefix(s, "]") {
			return id, params, s[1:], true
		}
		name, after, found := strings.Cut(strings.TrimLeft(s, " "), `="`)
		if !found {
			return "", params, "", false
		}
		var b strings.Builder
		i := 0
		for ; i < len(after) && after[i] != '"'; i++ {
			if after[i] == '\\' && i+1 < len(after) && strings.IndexByte(`"\]`, after[i+1]) >= 0 {
				i++
			}
			b.WriteByte(after[i])
		}
		if i == len(after) {
			return "", params, "", false
		}
		params.add(name, b.String())
		s = after[i+1:]
	}
}
