package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kansa-audit/kansa/pipeline/config"
)

var file = filepath.Join("..", "..", "..", "deploy", "config.example.yaml")

func TestFileIsUpToDate(t *testing.T) {
	t.Parallel()
	want, err := generate(filepath.Join("..", "..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("run go generate ./pipeline/config (-generated +file):\n%s", diff)
	}
}

func TestFileIsTheDefaults(t *testing.T) {
	t.Parallel()
	got, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	want, err := config.Load("")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("-default +file:\n%s", diff)
	}
}

var off = regexp.MustCompile(`(?m)^( *)#(\S)`)

// What is an example in the file is read as strictly as the rest.
func TestExamplesLoad(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// With the examples, links need an address to lead to.
	on := strings.Replace(off.ReplaceAllString(string(text), "$1$2"), `public_url: ""`, `public_url: "https://audit.example.com"`, 1)
	path := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(path, []byte(on), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.Destinations); n != 2 || got.Mail == nil || got.Retention.Organizations["acme"] != 90 || got.Destinations[0].Schedule.TimeZone != "Asia/Tokyo" {
		t.Errorf("the examples say otherwise: %d destinations, %+v", n, got)
	}
}

// Every key is there, and its comment, or that of the keys it stands with, names it or is its own.
func TestEveryKeyHasAComment(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	comment, follows := "", true
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if prose, ok := strings.CutPrefix(line, "# "); ok {
			if !follows {
				comment = ""
			}
			comment, follows = comment+" "+prose, true
			continue
		}
		line = strings.TrimPrefix(strings.TrimPrefix(line, "#"), "- ")
		name, _, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		if !follows && !found[name] && !regexp.MustCompile(`\b`+name+`\b`).MatchString(comment) && name != "acme" {
			t.Errorf("%s has no comment: give its field one", name)
		}
		found[name], follows = true, false
	}
	var keys func(reflect.Type)
	keys = func(of reflect.Type) {
		switch of.Kind() {
		case reflect.Pointer, reflect.Slice:
			keys(of.Elem())
		case reflect.Struct:
			for f := range fieldsOf(of) {
				if f.Tag.Get("yaml") == "" {
					continue // a time, not a part
				}
				if !found[key(f)] {
					t.Errorf("%s of %s is missing", key(f), of)
				}
				keys(f.Type)
			}
		}
	}
	keys(reflect.TypeFor[config.Config]())
}
