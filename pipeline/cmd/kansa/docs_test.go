package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// What the documentation tells people to type is what the program takes.
func TestCommandsOfTheDocumentation(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	line := regexp.MustCompile(`(?m)(?:^ {4,}(?:\S*bin/)?|exec \S+ -c kansa -- )(?:kansa|build/kansa) (.*)$`)
	word := regexp.MustCompile(`"([^"]*)"|'([^']*)'|(\S+)`)
	n := 0
	for _, path := range []string{"README.md", filepath.Join("deploy", "RUNBOOK.md"), filepath.Join("deploy", "README.md")} {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range blocks(string(text)) { // fenced, as those that are indented
			text = append(text, "\n    "+strings.ReplaceAll(b.text, "\n", "\n    ")...)
		}
		for _, m := range line.FindAllStringSubmatch(strings.ReplaceAll(string(text), "\\\n", " "), -1) {
			command, _, _ := strings.Cut(m[1], " #")
			command = regexp.MustCompile(`\s(\|+|&&|>|<|;).*$`).ReplaceAllString(command, "")
			var args []string
			for _, w := range word.FindAllStringSubmatch(command, -1) {
				if a := w[1] + w[2] + w[3]; a != "…" {
					args = append(args, a)
				}
			}
			n++
			parser, err := kong.New(&cli{}, kong.Exit(func(int) { t.Errorf("%s: kansa %s exits", path, command) }))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(args); err != nil {
				t.Errorf("%s: kansa %s: %v", path, command, err)
			}
		}
	}
	if n < 30 {
		t.Errorf("only %d commands were found", n)
	}
}
