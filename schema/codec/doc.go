// Package codec turns events into bytes and back: the encodings of a message (JSON, NDJSON and the
// columnar block), the block that is inserted into ClickHouse, and the text of an export.
//
// It owns the bytes and nothing else: it applies schema's rules and adds none, and never reads or
// writes anything but memory and the reader or writer it is handed.
package codec
