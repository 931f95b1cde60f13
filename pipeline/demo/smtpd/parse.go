package smtpd

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"
)

// Mail is what was received, taken apart.
type Mail struct {
	EnvelopeFrom string
	EnvelopeTo   []string
	// Path is the .eml file, Raw its bytes.
	Path   string
	Raw    []byte
	Header mail.Header
	// From, To and Subject are decoded from the header.
	From, To, Subject string
	// Text and HTML are the decoded parts; line ends are LF.
	Text, HTML string
}

// Parse takes a mail apart: its header, and its parts of text, however deep.
func Parse(raw []byte) (*Mail, error) {
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("parse mail: %w", err)
	}
	m := &Mail{Raw: raw, Header: msg.Header}
	for name, field := range map[string]*string{"From": &m.From, "To": &m.To, "Subject": &m.Subject} {
		if *field, err = new(mime.WordDecoder).DecodeHeader(msg.Header.Get(name)); err != nil {
			return nil, fmt.Errorf("parse mail: decode %s: %w", name, err)
		}
	}
	return m, m.part(msg.Header.Get("Content-Type"), msg.Header.Get("Content-Transfer-Encoding"), msg.Body, 0)
}

func (m *Mail) part(contentType, encoding string, body io.Reader, depth int) error {
	if contentType == "" {
		contentType = "text/plain"
	}
	kind, parameters, err := mime.ParseMediaType(contentType)
	if err != nil {
		return fmt.Errorf("parse mail: content type %q: %w", contentType, err)
	}
	if strings.HasPrefix(kind, "multipart/") {
		if depth > 5 {
			return fmt.Errorf("parse mail: parts are nested too deep")
		}
		for r := multipart.NewReader(body, parameters["boundary"]); ; {
			p, err := r.NextRawPart()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return fmt.Errorf("parse mail: next part: %w", err)
			}
			if err := m.part(p.Header.Get("Content-Type"), p.Header.Get("Content-Transfer-Encoding"), p, depth+1); err != nil {
				return err
			}
		}
	}
	switch strings.ToLower(encoding) {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return fmt.Errorf("parse mail: decode %s: %w", kind, err)
	}
	text := strings.ReplaceAll(string(data), "\r\n", "\n")
	switch {
	case kind == "text/plain" && m.Text == "":
		m.Text = text
	case kind == "text/html" && m.HTML == "":
		m.HTML = text
	}
	return nil
}
