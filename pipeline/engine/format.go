package engine

import (
	"bytes"
	"strings"
)

// layout says how a format's output, made block by block, becomes one document. libchdb begins a new
// document with every block that it streams.
type layout struct {
	streams     bool
	headerLines int // to be left out of every block but the first
	csv         bool
	contentType string
}

const (
	typeBinary = "application/octet-stream"
	typeText   = "text/plain; charset=UTF-8"
	typeTSV    = "text/tab-separated-values; charset=UTF-8"
	typeNDJSON = "application/x-ndjson; charset=UTF-8"
)

// formatLayout knows the formats whose blocks can be put one behind the other. All others are made whole
// in memory before they are sent.
func formatLayout(format string) layout {
	name := strings.ToLower(format)
	l := layout{contentType: typeText}
	switch {
	case strings.HasSuffix(name, "withnamesandtypes"):
		name, l.headerLines = strings.TrimSuffix(name, "withnamesandtypes"), 2
	case strings.HasSuffix(name, "withnames"):
		name, l.headerLines = strings.TrimSuffix(name, "withnames"), 1
	}
	switch name {
	case "native", "rowbinary", "msgpack", "rawblob":
		l.contentType, l.streams = typeBinary, l.headerLines == 0
	case "csv":
		l.contentType, l.streams, l.csv = "text/csv; charset=UTF-8; header=absent", true, true
		if l.headerLines > 0 {
			l.contentType = "text/csv; charset=UTF-8; header=present"
		}
	case "tsv", "tabseparated", "tsvraw", "tabseparatedraw", "raw":
		l.contentType, l.streams = typeTSV, true
	case "tskv", "lineasstring", "null":
		l.streams = l.headerLines == 0
	case "jsoneachrow", "jsonlines", "ndjson", "jsonstringseachrow":
		l.contentType, l.streams = typeNDJSON, l.headerLines == 0
	case "jsoncompacteachrow", "jsoncompactstringseachrow":
		l.contentType, l.streams = typeNDJSON, true
	case "json", "jsoncompact", "jsonstrings", "jsoncompactstrings", "jsoncolumns", "jsonobjecteachrow", "jsoncompactcolumns", "jsoncolumnswithmetadata":
		l.contentType = "application/json; charset=UTF-8"
	case "xml":
		l.contentType = "application/xml; charset=UTF-8"
	case "parquet", "arrow", "arrowstream", "orc", "avro", "capnproto", "protobuf", "npy", "bsoneachrow", "protobufsingle":
		l.contentType = typeBinary
	}
	return l
}

// body leaves out the lines of the header. In CSV a line break within quotes does not end a line.
func (l layout) body(block []byte) []byte {
	for range l.headerLines {
		end := -1
		if !l.csv {
			end = bytes.IndexByte(block, '\n')
		} else {
			quoted := false
			for i, c := range block {
				if c == '"' {
					quoted = !quoted
				} else if c == '\n' && !quoted {
					end = i
					break
				}
			}
		}
		if end < 0 {
			return nil
		}
		block = block[end+1:]
	}
	return block
}
