package mail

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"math"
	"net/url"
	"strconv"
	"strings"
	texttemplate "text/template"
	"time"
)

// Download is an archive that waits to be fetched.
type Download struct {
	Organization string
	// Trails are "activity", "access", or both.
	Trails []string
	// From and To are the range, To not included.
	From, To time.Time
	Events   int64
	Files    int64
	// Size is the archive's, in bytes. FileName is what it will be saved as.
	Size     int64
	FileName string
	// Link is an absolute https (or http) address that works until Expires.
	Link    string
	Expires time.Time
}

//go:embed templates/download.txt templates/download.html
var templates embed.FS

var (
	functions = map[string]any{
		"count": count, "size": humanSize, "moment": moment, "day": day, "rfc3339": rfc3339, "list": list,
	}
	textDownload = texttemplate.Must(texttemplate.New("download.txt").Funcs(functions).ParseFS(templates, "templates/download.txt"))
	htmlDownload = htmltemplate.Must(htmltemplate.New("download.html").Funcs(functions).ParseFS(templates, "templates/download.html"))
)

// Message renders the mail.
func (d Download) Message(to string) (Message, error) {
	if err := d.validate(); err != nil {
		return Message{}, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	var text, html bytes.Buffer
	if err := textDownload.Execute(&text, d); err != nil {
		return Message{}, fmt.Errorf("%w: render text: %w", ErrMessage, err)
	}
	if err := htmlDownload.Execute(&html, d); err != nil {
		return Message{}, fmt.Errorf("%w: render html: %w", ErrMessage, err)
	}
	return Message{
		To:      to,
		Subject: fmt.Sprintf("Audit archive of %s is ready (%s, %s)", d.Organization, list(d.Trails), span(d.From, d.To)),
		Text:    text.String(), HTML: html.String(),
	}, nil
}

func (d Download) validate() error {
	link, err := url.Parse(d.Link)
	switch {
	case err != nil || link.Host == "" || link.Scheme != "https" && link.Scheme != "http":
		// The link is a secret, so it is not in the error.
		return errors.New("link: give an absolute https address")
	case strings.ContainsAny(d.Link, " \t\r\n<>\""):
		return errors.New("link: escape spaces, quotes and angle brackets")
	case d.Organization == "" || len(d.Trails) == 0:
		return errors.New("organization and trails: give both")
	case !d.From.Before(d.To):
		return fmt.Errorf("from, to: %s is not before %s", rfc3339(d.From), rfc3339(d.To))
	case d.Expires.IsZero():
		return errors.New("expires: give the time until which the link works")
	}
	return nil
}

// count groups digits: 1,234,567.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for at := len(s) - 3; at > 0 && s[at-1] != '-'; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	return s
}

// humanSize is in powers of ten, as download dialogs count.
func humanSize(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d bytes", n)
	}
	value, unit := float64(n)/1000, 0
	// What would be shown as 1000.0 is one of the next unit.
	for math.Round(value*10) >= 10000 && unit < len(units)-1 {
		value /= 1000
		unit++
	}
	return fmt.Sprintf("%.1f %cB", value, units[unit])
}

func moment(t time.Time) string  { return t.UTC().Format("2 January 2006, 15:04 UTC") }
func day(t time.Time) string     { return t.UTC().Format("Monday, 2 January 2006, 15:04 UTC") }
func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// span is short, for a subject: days, if it is made of days.
func span(from, to time.Time) string {
	from, to = from.UTC(), to.UTC()
	midnight := 24 * time.Hour
	if from.Truncate(midnight).Equal(from) && to.Truncate(midnight).Equal(to) {
		last := to.AddDate(0, 0, -1)
		if last.Equal(from) {
			return from.Format(time.DateOnly)
		}
		return from.Format(time.DateOnly) + " to " + last.Format(time.DateOnly)
	}
	return from.Format("2006-01-02 15:04") + " to " + to.Format("2006-01-02 15:04") + " UTC"
}

func list(items []string) string { return strings.Join(items, " and ") }
