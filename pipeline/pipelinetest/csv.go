package pipelinetest

import (
	"errors"
	"fmt"
	"strings"
)

// ParseCSV reads RFC 4180 strictly: CRLF between records, quotes around whatever needs them. Unlike
// encoding/csv it leaves line breaks within a value as they are.
func ParseCSV(text string) ([][]string, error) {
	var records [][]string
	var record []string
	for n := 1; text != ""; n++ {
		value, rest, err := csvValue(text)
		if err != nil {
			return nil, fmt.Errorf("value %d of record %d: %w", len(record)+1, len(records)+1, err)
		}
		record = append(record, value)
		switch {
		case strings.HasPrefix(rest, ","):
			text = rest[1:]
		case strings.HasPrefix(rest, "\r\n"):
			records, record, text = append(records, record), nil, rest[2:]
		default:
			return nil, fmt.Errorf("record %d: %.20q follows a value", len(records)+1, rest)
		}
	}
	if record != nil {
		return nil, errors.New("the last record has no line break")
	}
	return records, nil
}

func csvValue(text string) (value, rest string, err error) {
	if !strings.HasPrefix(text, `"`) {
		i := strings.IndexAny(text, ",\r\n\"")
		if i < 0 || text[i] == '"' {
			return "", "", errors.New("a bare value does not end")
		}
		return text[:i], text[i:], nil
	}
	var b strings.Builder
	for text = text[1:]; ; {
		i := strings.IndexByte(text, '"')
		if i < 0 {
			return "", "", errors.New("a quoted value does not end")
		}
		b.WriteString(text[:i])
		if text = text[i+1:]; !strings.HasPrefix(text, `"`) {
			return b.String(), text, nil
		}
		b.WriteByte('"')
		text = text[1:]
	}
}
