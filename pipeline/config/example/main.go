// Command example writes deploy/config.example.yaml: every key of the configuration with its default and, as its
// comment, the doc comment of the field.
//
// Structure and defaults come from the type itself by reflection, comments from its source by go/ast.
package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/schema"
)

const module = "github.com/kansa-audit/kansa"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go generate ./pipeline/config")
		os.Exit(2)
	}
	text, err := generate(filepath.Join("..", ".."))
	if err == nil {
		err = os.WriteFile(os.Args[1], text, 0o644) //nolint:gosec // an example is for everybody
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "example:", err)
		os.Exit(1)
	}
}

const head = `# Every key of Kansa's configuration, with its default. What is left out has its default; unknown keys are errors.
# Lines that begin with # and a key are examples of what is absent by default. kansa check-config FILE checks a file.
#
# Made of the comments in pipeline/config by go generate ./pipeline/config. Don't edit it: a test compares.
`

// samples are values of what is absent by default, by the path of its key.
func samples() map[string]any {
	return map[string]any{
		"retention.organizations": map[string]int{"acme": 90},
		"api.oidc.roles":          []config.GroupRole{{Group: "acme-auditors", Role: "auditor", Organization: "acme"}},
		"mail": &mail.Config{
			Host: "smtp.example.com", Port: 587, Username: "kansa", PasswordFile: "/etc/kansa/smtp-password", TLS: "starttls",
			Helo: "kansa.example.com", From: "Kansa <audit@example.com>", Timeout: 30 * time.Second,
		},
		"destinations": []exporter.Destination{{
			Name: "nightly", Organization: "acme", Trails: []schema.Trail{schema.Activity, schema.Access},
			SFTP: &sftp.Config{
				Host: "sftp.example.com", Port: 22, User: "kansa", PrivateKeyFile: "/etc/kansa/id_ed25519",
				HostKeys: []string{"SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}, Path: "/incoming",
				ConnectTimeout: sftp.Duration(15 * time.Second), IdleTimeout: sftp.Duration(time.Minute),
				Keepalive: sftp.Duration(15 * time.Second), Concurrency: 64,
			},
			Schedule: &exporter.Schedule{
				Cron: "0 15 1 * * *", TimeZone: "Asia/Tokyo", Period: 24 * time.Hour, Since: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
			},
		}, {
			Name: "monthly-link", Organization: "acme", Mail: []string{"auditor@acme.example"},
			Schedule: &exporter.Schedule{Cron: "0 0 6 * * *", Period: 24 * time.Hour},
		}},
	}
}

// generate returns the file; root is the module's directory.
func generate(root string) ([]byte, error) {
	w := writer{comments: comments{root: root, types: map[string]map[string]*ast.StructType{}, docs: map[string]map[string]string{}}, samples: samples()}
	w.buf.WriteString(head)
	w.fields(reflect.ValueOf(config.Default()).Elem(), "", place{comment: true})
	return w.buf.Bytes(), w.err
}

// place is where in the file a value is written.
type place struct {
	indent  int
	off     bool   // as an example: # before each key
	comment bool   // with comments; without them, keys that say nothing are left out as well
	dash    string // what stands before the next key: "- " for the first of a list's element
}

type writer struct {
	buf      bytes.Buffer
	comments comments
	samples  map[string]any
	err      error
}

// line writes a key's line.
func (w *writer) line(p *place, format string, v ...any) {
	indent := strings.Repeat(" ", p.indent)
	if p.dash != "" {
		indent = indent[2:]
	}
	if p.off {
		indent += "#"
	}
	fmt.Fprintf(&w.buf, "%s%s%s\n", indent, p.dash, fmt.Sprintf(format, v...))
	p.dash = ""
}

const width = 118

func (w *writer) prose(p place, text string) {
	indent := p.indent - len(p.dash)
	for _, line := range wrap(text, width-indent-2) {
		fmt.Fprintf(&w.buf, "%s# %s\n", strings.Repeat(" ", indent), line)
	}
}

func (w *writer) fields(v reflect.Value, path string, p place) {
	names := map[string]string{} // Go's names of this type's keys
	for f := range fieldsOf(v.Type()) {
		names[f.Name] = key(f)
	}
	for f := range fieldsOf(v.Type()) {
		value, at, here := v.FieldByIndex(f.Index), key(f), p
		if path != "" {
			at = path + "." + at
		}
		if sample, ok := w.samples[at]; ok && value.IsZero() {
			value, here.off = reflect.ValueOf(sample), true
		}
		if value.Kind() == reflect.Pointer && value.IsNil() || !p.comment && value.IsZero() {
			continue
		}
		if p.comment {
			text, err := w.comments.of(v.Type(), f.Name)
			if err != nil && w.err == nil {
				w.err = err
			}
			known := names
			if text == "" && f.Type.Kind() == reflect.Struct { // a part is explained by its type
				text = w.comments.docs[f.Type.PkgPath()][f.Type.Name()]
				known = map[string]string{f.Type.Name(): key(f)}
				for inner := range fieldsOf(f.Type) {
					known[inner.Name] = key(inner)
				}
			}
			if path == "" {
				w.buf.WriteString("\n")
			}
			w.prose(here, inYAML(text, known))
		}
		w.value(value, key(f), at, &here)
		p.dash = here.dash
	}
}

func (w *writer) value(v reflect.Value, name, path string, p *place) {
	if s, ok := scalar(v); ok {
		w.line(p, "%s: %s", name, s)
		return
	}
	inner := place{indent: p.indent + 2, off: p.off, comment: p.comment}
	switch v.Kind() {
	case reflect.Pointer:
		w.value(v.Elem(), name, path, p)
	case reflect.Struct:
		w.line(p, "%s:", name)
		w.fields(v, path, inner)
	case reflect.Map:
		w.line(p, "%s:", name)
		for _, k := range v.MapKeys() { // samples have one key
			s, _ := scalar(v.MapIndex(k))
			w.line(&inner, "%s: %s", k, s)
		}
	case reflect.Slice:
		w.line(p, "%s:", name)
		for i := range v.Len() {
			element := inner
			element.dash, element.comment = "- ", inner.comment && i == 0
			w.fields(v.Index(i), path+"[]", element)
		}
	default:
		w.err = fmt.Errorf("%s: how is a %s written?", path, v.Type())
	}
}

// fieldsOf yields the fields of a struct that are keys, but for those of what is embedded: kansa destination add --help
// has these.
func fieldsOf(t reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if f := t.Field(i); f.IsExported() && !f.Anonymous && key(f) != "-" && !yield(f) {
				return
			}
		}
	}
}

func key(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if name == "" {
		return strings.ToLower(f.Name)
	}
	return name
}

// scalar is a value that fits on its key's line.
func scalar(v reflect.Value) (string, bool) {
	switch x := v.Interface().(type) {
	case time.Duration:
		return duration(x), true
	case sftp.Duration:
		return duration(time.Duration(x)), true
	case time.Time:
		return x.Format(time.RFC3339), true
	case fmt.Stringer: // a level of the log
		return strings.ToLower(x.String()), true
	}
	switch v.Kind() {
	case reflect.String:
		return quoted(v.String()), true
	case reflect.Bool:
		return strconv.FormatBool(v.Bool()), true
	case reflect.Int, reflect.Int64:
		n := v.Int()
		if n >= 1<<20 && n%(1<<20) == 0 {
			return fmt.Sprintf("%d # %d MiB", n, n>>20), true
		}
		return strconv.FormatInt(n, 10), true
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.String {
			return "", false
		}
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = quoted(v.Index(i).String())
		}
		return "[" + strings.Join(parts, ", ") + "]", true
	}
	return "", false
}

func duration(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

var plain = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./-]*$`)

func quoted(s string) string {
	if plain.MatchString(s) && s != "true" && s != "false" && s != "null" {
		return s
	}
	return strconv.Quote(s)
}

var word = regexp.MustCompile(`[A-Za-z]+`)

// inYAML writes a comment of Go for those who see keys.
func inYAML(text string, names map[string]string) string {
	return word.ReplaceAllStringFunc(text, func(w string) string {
		if name, ok := names[w]; ok {
			return name
		}
		return w
	})
}

func wrap(text string, width int) []string {
	var lines []string
	for _, w := range strings.Fields(text) {
		if n := len(lines); n > 0 && len([]rune(lines[n-1]))+1+len([]rune(w)) <= width {
			lines[n-1] += " " + w
		} else {
			lines = append(lines, w)
		}
	}
	return lines
}

// comments finds the comments of types in the module's source, by the package's path and the type's name.
type comments struct {
	root  string
	types map[string]map[string]*ast.StructType
	docs  map[string]map[string]string
}

// of is the comment of a field; empty if it has none.
func (c comments) of(t reflect.Type, field string) (string, error) {
	if c.types[t.PkgPath()] == nil {
		if err := c.parse(t.PkgPath()); err != nil {
			return "", err
		}
	}
	of := c.types[t.PkgPath()][t.Name()]
	if of == nil {
		return "", fmt.Errorf("find the source of %s", t)
	}
	for _, f := range of.Fields.List {
		for _, n := range f.Names {
			if n.Name == field {
				return f.Doc.Text() + f.Comment.Text(), nil
			}
		}
	}
	return "", fmt.Errorf("find %s.%s in its source", t, field)
}

func (c comments) parse(pkg string) error {
	c.types[pkg], c.docs[pkg] = map[string]*ast.StructType{}, map[string]string{}
	dir := filepath.Join(c.root, filepath.FromSlash(strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/")))
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, s := range g.Specs {
				spec, ok := s.(*ast.TypeSpec)
				if !ok {
					continue
				}
				c.docs[pkg][spec.Name.Name] = g.Doc.Text()
				if of, ok := spec.Type.(*ast.StructType); ok {
					c.types[pkg][spec.Name.Name] = of
				}
			}
		}
	}
	return nil
}
