package engine

import (
	"strings"
	"testing"
)

func TestParseStatement(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text   string
		kind   statementKind
		stmt   string
		format string
		data   string
	}{
		{"INSERT INTO t FORMAT Native\nabc", statementInsert, "INSERT INTO t ", "Native", "abc"},
		{"insert into db.t (a, `b)c`, \"d`(\") format CSV \r\n1,2", statementInsert, "insert into db.t (a, `b)c`, \"d`(\") ", "CSV", "1,2"},
		{"INSERT INTO t FORMAT CSV\n\n1", statementInsert, "INSERT INTO t ", "CSV", "\n1"},
		{"INSERT INTO t(a) VALUES (1),(2)", statementInsert, "INSERT INTO t(a) ", "Values", " (1),(2)"},
		{"INSERT INTO values VALUES (1)", statementInsert, "INSERT INTO values ", "Values", " (1)"},
		{"INSERT INTO format.select FORMAT CSV 1", statementInsert, "INSERT INTO format.select ", "CSV", "1"},
		{"INSERT INTO TABLE t (* EXCEPT(a)) SETTINGS async_insert=1, x='FORMAT (' FORMAT CSV\n1", statementInsert, "INSERT INTO TABLE t (* EXCEPT(a)) SETTINGS async_insert=1, x='FORMAT (' ", "CSV", "1"},
		{"INSERT INTO table VALUES (1)", statementInsert, "INSERT INTO table ", "Values", " (1)"},
		{"INSERT INTO FUNCTION file('a', CSV) FORMAT CSV\n1", statementInsert, "INSERT INTO FUNCTION file('a', CSV) ", "CSV", "1"},
		{"INSERT INTO {t:Identifier} (a) FORMAT CSV\n1", statementInsert, "INSERT INTO {t:Identifier} (a) ", "CSV", "1"},
		{"INSERT INTO t FORMAT CSV SETTINGS a = 1, b = 'x'\n1", statementInsert, "INSERT INTO t  SETTINGS a = 1, b = 'x'", "CSV", "1"},
		{"INSERT INTO t -- FORMAT TSV\n /* VALUES */ FORMAT CSV 'x", statementInsert, "INSERT INTO t -- FORMAT TSV\n /* VALUES */ ", "CSV", "'x"},
		{"INSERT INTO t (a) -- c", statementInsert, "INSERT INTO t (a) -- c\n", "Values", ""},
		{"INSERT INTO t (a) SELECT 'FORMAT' FORMAT Null;", statementOther, "INSERT INTO t (a) SELECT 'FORMAT' FORMAT Null", "", ""},
		{"INSERT INTO t (SELECT 1)", statementOther, "INSERT INTO t (SELECT 1)", "", ""},
		{"INSERT INTO t WITH x AS (SELECT 1) SELECT * FROM x", statementOther, "INSERT INTO t WITH x AS (SELECT 1) SELECT * FROM x", "", ""},
		{"SELECT 1 FORMAT CSV", statementSelect, "SELECT 1 FORMAT CSV", "CSV", ""},
		{"SELECT 1 FORMAT CSV SETTINGS a=1;;\n-- end", statementSelect, "SELECT 1 FORMAT CSV SETTINGS a=1", "CSV", ""},
		{"SELECT format AS a, x.format FROM t", statementSelect, "SELECT format AS a, x.format FROM t", "", ""},
		{"SELECT ';', $tag$ ; $tag$, 'it''s \\';' AS \"a;b\"", statementSelect, "SELECT ';', $tag$ ; $tag$, 'it''s \\';' AS \"a;b\"", "", ""},
		{"\ufeff# c\n#!x\n(SELECT 1)", statementSelect, "\ufeff# c\n#!x\n(SELECT 1)", "", ""},
		{"CREATE TABLE t (a UInt8) ENGINE=Memory", statementOther, "CREATE TABLE t (a UInt8) ENGINE=Memory", "", ""},
	} {
		got, err := parseStatement(test.text)
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
			continue
		}
		data := ""
		if got.kind == statementInsert {
			data = test.text[got.data:]
		}
		if got.kind != test.kind || got.text != test.stmt || got.format != test.format || data != test.data {
			t.Errorf("%q: got %v %q %q, data %q", test.text, got.kind, got.text, got.format, data)
		}
	}
	for _, text := range []string{
		"", " -- x", "SELECT 1; SELECT 2", "SELECT 'a", "SELECT /* 1", "INSERT INTO", "INSERT INTO t FORMAT", "INSERT INTO t; DROP TABLE t",
		"INSERT INTO t SELECT 1; DROP TABLE t", "SELECT 1 INTO/**/OUTFILE 'x'", "SELECT * FROM (SELECT 1 INTO OUTFILE 'x')", "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
		"INSERT INTO t SELECT 1 INTO OUTFILE 'x'", "INSERT INTO t FORMAT CSV; 1",
	} {
		if got, err := parseStatement(text); err == nil {
			t.Errorf("%q: got %+v, want an error", text, got)
		}
	}
}

func FuzzParseStatement(f *testing.F) {
	for _, seed := range []string{
		"INSERT INTO db.`t` (a, \"b\") SETTINGS x='y' FORMAT Native\nx", "INSERT INTO t VALUES (1)", "SELECT 1 FORMAT CSV;", "SELECT $a$;$a$", "/*", "'", "INSERT INTO {", "\xc2",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		st, err := parseStatement(text)
		if err != nil {
			return
		}
		if st.kind != statementInsert {
			if !strings.Contains(text, st.text) {
				t.Fatalf("%q became %q", text, st.text)
			}
			return
		}
		if st.data < 0 || st.data > len(text) || st.format == "" {
			t.Fatalf("%q: data at %d, format %q", text, st.data, st.format)
		}
		// What is kept, put together again, reads the same.
		again, err := parseStatement(st.text + " FORMAT " + st.format + "\n" + text[st.data:])
		if err != nil || again.kind != statementInsert || again.format != st.format {
			t.Fatalf("%q became %q, which reads as %+v, %v", text, st.text, again, err)
		}
	})
}
