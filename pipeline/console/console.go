// Package console is the page in which people work with Kansa: a shell and a few modules that ask the HTTP API from the
// browser, in English and Japanese.
//
// It owns what a browser is sent besides the API's answers. It knows no event and no setting, and decides nothing: what
// a person may see or do, the API says.
package console

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
)

//go:embed static assets shell.html messages.json
var files embed.FS

// Pages are the paths of the console.
var Pages = []string{"/{$}", "/first", "/events", "/exports", "/destinations", "/organization", "/integrity", "/access", "/system"}

// policy has the browser load nothing but our own files and run no script but those.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; manifest-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// file is one that browsers load. They keep it for as long as its address has the same version.
type file struct {
	kind         string
	text, zipped []byte
}

type console struct {
	shell   *template.Template
	files   map[string]file
	version string
	charts  bool
}

// load reads what is embedded, once.
var load = sync.OnceValues(func() (*console, error) {
	c := &console{files: map[string]file{}}
	var err error
	if c.shell, err = template.ParseFS(files, "shell.html"); err != nil {
		return nil, fmt.Errorf("read the console's page: %w", err)
	}
	sum := sha256.New()
	add := func(name string, text []byte) error {
		kind, ok := kinds[path.Ext(name)]
		if !ok {
			return nil
		}
		var zipped bytes.Buffer
		z := gzip.NewWriter(&zipped)
		if _, err := z.Write(text); err != nil {
			return err
		}
		if err := z.Close(); err != nil {
			return err
		}
		fmt.Fprintf(sum, "%s %d\n%s", name, len(text), text)
		c.files[name] = file{kind, text, zipped.Bytes()}
		return nil
	}
	for _, dir := range []string{"static", "assets", "."} {
		entries, err := fs.ReadDir(files, dir)
		if err != nil {
			return nil, fmt.Errorf("read the console's files: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() {
				continue
			}
			text, err := files.ReadFile(path.Join(dir, e.Name()))
			if err == nil {
				err = add(e.Name(), text)
			}
			if err != nil {
				return nil, fmt.Errorf("read the console's file %s: %w", e.Name(), err)
			}
		}
	}
	known, err := json.Marshal(map[string]any{"algorithms": sftp.KnownAlgorithms(), "hidden": exporter.Hidden})
	if err == nil {
		err = add("facts.json", known)
	}
	if err != nil {
		return nil, fmt.Errorf("write what the console's forms offer: %w", err)
	}
	_, c.charts = c.files["uPlot.esm.js"]
	c.version = hex.EncodeToString(sum.Sum(nil)[:6])
	return c, nil
})

var kinds = map[string]string{
	".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".json": "application/json", ".svg": "image/svg+xml",
}

// Routes are those of the console, by the pattern of a mux.
func Routes() (map[string]http.Handler, error) {
	c, err := load()
	if err != nil {
		return nil, err
	}
	routes := map[string]http.Handler{
		"GET /console/{version}/{file}": http.HandlerFunc(c.file),
		"GET /console/schedule":         http.HandlerFunc(schedule),
	}
	for _, p := range Pages {
		routes["GET "+p] = http.HandlerFunc(c.page)
	}
	return routes, nil
}

func (c *console) page(w http.ResponseWriter, r *http.Request) {
	look := struct {
		Version, Lang, Theme string
		Session, Charts      bool
	}{Version: c.version, Lang: language(r), Theme: chosen(r, "kansa_theme", "light", "dark"), Charts: c.charts}
	if cookie, err := r.Cookie("kansa_session"); err == nil {
		look.Session = cookie.Value != ""
	}
	var text bytes.Buffer
	if err := c.shell.Execute(&text, look); err != nil {
		http.Error(w, "the page can not be shown", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(text.Bytes()) // who asked may be gone
}

func (c *console) file(w http.ResponseWriter, r *http.Request) {
	f, ok := c.files[r.PathValue("file")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", f.kind)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Vary", "Accept-Encoding")
	h.Set("Cache-Control", "no-cache")
	if r.PathValue("version") == c.version {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	text := f.text
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		text = f.zipped
	}
	_, _ = w.Write(text) // who asked may be gone
}

// chosen is a cookie by which a browser remembers what a person chose.
func chosen(r *http.Request, name string, values ...string) string {
	if cookie, err := r.Cookie(name); err == nil {
		for _, v := range values {
			if cookie.Value == v {
				return v
			}
		}
	}
	return ""
}

// language is the one that was chosen, or the first of ours that the browser prefers.
func language(r *http.Request) string {
	if l := chosen(r, "kansa_lang", "en", "ja"); l != "" {
		return l
	}
	for part := range strings.SplitSeq(strings.ToLower(r.Header.Get("Accept-Language")), ",") {
		switch part = strings.TrimSpace(part); {
		case strings.HasPrefix(part, "ja"):
			return "ja"
		case strings.HasPrefix(part, "en"):
			return "en"
		}
	}
	return "en"
}

// runs is how many of the next runs of a schedule are shown.
const runs = 3

// schedule says when a schedule that somebody types would be due. It looks at nothing of ours, so anybody may ask.
func schedule(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var answer struct {
		Runs  []time.Time `json:"runs"`
		Error string      `json:"error,omitempty"`
	}
	answer.Runs = []time.Time{}
	s := exporter.Schedule{Cron: q.Get("cron"), TimeZone: q.Get("time_zone")}
	err := error(nil)
	if every := q.Get("every"); every != "" {
		if s.Every, err = time.ParseDuration(every); err == nil && s.Every < time.Second {
			err = fmt.Errorf("every %s is too short", every)
		}
	}
	at := time.Now()
	for err == nil && len(answer.Runs) < runs {
		if at, err = s.Next(at); err == nil {
			if at.IsZero() {
				break // such as the 30th of February
			}
			answer.Runs = append(answer.Runs, at)
		}
	}
	if err != nil {
		answer.Error = err.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(answer) // who asked may be gone
}
