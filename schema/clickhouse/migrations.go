// Package clickhouse holds the tables of Kansa as ordered SQL files.
//
// It owns the text of the migrations and never runs them: the store does.
package clickhouse

import (
	"embed"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

//go:embed *.sql
var files embed.FS

// Migration is one step from an older set of tables to a newer one. Each of its statements may be run
// again without harm.
type Migration struct {
	Version    int
	Name       string
	Statements []string
}

// Migrations returns every migration in order, for the tables of one server or of a cluster. A file is named NNNN_name.sql;
// a line that ends in a semicolon ends a statement.
func (t Tables) Migrations() ([]Migration, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	var all []Migration
	for i, name := range names {
		number, rest, _ := strings.Cut(name, "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != i+1 {
			return nil, fmt.Errorf("migration %s: want number %04d", name, i+1)
		}
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read migration: %w", err)
		}
		statements, err := t.write(string(text))
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", name, err)
		}
		m := Migration{Version: version, Name: strings.TrimSuffix(rest, ".sql")}
		for _, statement := range strings.SplitAfter(statements, ";\n") {
			if statement = strings.TrimSuffix(strings.TrimSpace(statement), ";"); statement != "" {
				m.Statements = append(m.Statements, statement)
			}
		}
		all = append(all, m)
	}
	return all, nil
}
