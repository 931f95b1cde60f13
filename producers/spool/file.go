package spool

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/schema"
)

// A file holds one message:
//
//	kansa-spool-1 SHA-256 of all that follows, in hexadecimal
//	{"subject":…,"header":…}
//	the data
//
// The hash is over subject and header too: a message on another subject is another organization's, and one
// with another id is stored twice.
const magic = "kansa-spool-1 "

// maxFile is more than any message takes.
const maxFile = schema.MaxMessageBytes + 64<<10

type head struct {
	Subject string              `json:"subject"`
	Header  map[string][]string `json:"header"`
}

// encodeHead returns what comes before the data in a message's file.
func encodeHead(msg *nats.Msg) ([]byte, error) {
	line, err := json.Marshal(head{msg.Subject, msg.Header})
	if err != nil {
		return nil, err
	}
	line = append(line, '\n')
	return append(fmt.Appendf(nil, "%s%x\n", magic, sum(line, msg.Data)), line...), nil
}

func sum(parts ...[]byte) []byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// decode reads a message's file. An error answers to ErrDamaged.
func decode(file []byte) (*nats.Msg, error) {
	first, rest, _ := bytes.Cut(file, []byte{'\n'})
	want, ok := bytes.CutPrefix(first, []byte(magic))
	if !ok {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrDamaged)
	}
	if got := hex.EncodeToString(sum(rest)); got != string(want) {
		return nil, fmt.Errorf("%w: its hash is %s, want %q", ErrDamaged, got, want)
	}
	line, data, ok := bytes.Cut(rest, []byte{'\n'})
	if !ok {
		return nil, fmt.Errorf("%w: it has no data", ErrDamaged)
	}
	var h head
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return &nats.Msg{Subject: h.Subject, Header: h.Header, Data: data}, nil
}

// write makes a file durable under its name, or leaves none.
func write(dir, path string, head, data []byte) error {
	f, err := os.OpenFile(path+unfinished, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(head)
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path+unfinished))
	}
	if err := os.Rename(path+unfinished, path); err != nil {
		return errors.Join(err, os.Remove(path+unfinished))
	}
	if err := syncDir(dir); err != nil {
		return errors.Join(err, os.Remove(path)) // if it stays, it is published once more, which does no harm
	}
	return nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
