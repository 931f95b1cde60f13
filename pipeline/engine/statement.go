package engine

import "strings"

// statement is what the endpoint has to know of a query: libchdb parses it, but how it must be handed
// over depends on its kind, and an INSERT has to be parted from its data.
type statement struct {
	kind   statementKind
	text   string // without a closing semicolon; for an insert without FORMAT or VALUES
	format string // the FORMAT clause, or empty
	data   int    // where an insert's data begins in the original text
	totals bool   // has WITH TOTALS, whose rows come after the last block
}

type statementKind int

const (
	statementOther  statementKind = iota
	statementSelect               // may be streamed
	statementInsert               // takes data
)

// parseStatement reads one statement. It refuses a second one, which libchdb would run as well, and the
// clauses that read and write files of this machine, which libchdb allows even to a reader.
func parseStatement(text string) (statement, error) {
	s := scanner{text: text}
	first := s.next()
	switch {
	case first.kind == tokenEnd:
		return statement{}, exceptionf(codeSyntaxError, "Empty query (SYNTAX_ERROR)")
	case first.is("INSERT"):
		return parseInsert(text)
	}
	st := statement{kind: statementOther}
	if first.is("SELECT") || first.is("WITH") || first.is("FROM") || first.text == "(" {
		st.kind = statementSelect
	}
	depth, end := 0, len(text)
	var before, format token // format is the name after the last FORMAT
	for t := first; t.kind != tokenEnd; t = s.next() {
		switch {
		case t.kind == tokenBroken:
			return statement{}, exceptionf(codeSyntaxError, "Syntax error: unterminated %s at position %d (SYNTAX_ERROR)", t.text, t.start+1)
		case t.text == "(" || t.text == "[" || t.text == "{":
			depth++
		case t.text == ")" || t.text == "]" || t.text == "}":
			depth--
		case t.text == ";" && depth <= 0:
			if rest := s.next(); rest.kind != tokenEnd && rest.text != ";" {
				return statement{}, exceptionf(codeSyntaxError, "Syntax error (Multi-statements are not allowed): failed at position %d (SYNTAX_ERROR)", t.start+1)
			}
			end = t.start
		case t.is("OUTFILE") && before.is("INTO"):
			return statement{}, exceptionf(codeNotImplemented, "INTO OUTFILE is not allowed here (NOT_IMPLEMENTED)")
		case t.is("TOTALS") && before.is("WITH"):
			st.totals = true
		case depth == 0 && before.is("FORMAT") && t.kind == tokenWord:
			format = t
		case depth == 0 && format.kind != tokenEnd && before == format && !t.is("SETTINGS"):
			format = token{} // it was a column's name
		}
		if end < len(text) {
			break
		}
		before = t
	}
	st.text, st.format = strings.TrimSpace(text[:end]), format.text
	return st, nil
}

// parseInsert finds where the statement ends and the data begins.
func parseInsert(text string) (statement, error) {
	s := scanner{text: text}
	s.next() // INSERT
	t := s.next()
	if t.is("INTO") {
		t = s.next()
	}
	// TABLE and FUNCTION are also legal names of tables.
	if peek := s.peek(); t.is("TABLE") && (peek.kind == tokenWord || peek.kind == tokenQuoted) && !peek.startsData() {
		t = s.next()
	}
	if t.is("FUNCTION") && s.peek().kind == tokenWord && !s.peek().startsData() {
		t = s.next()
	}
	switch t.kind {
	case tokenWord, tokenQuoted:
	default:
		if t.text != "{" { // {name:Identifier}
			return statement{}, exceptionf(codeSyntaxError, "Syntax error: failed at position %d: expected a table (SYNTAX_ERROR)", t.start+1)
		}
		for t.kind != tokenEnd && t.text != "}" {
			t = s.next()
		}
	}
	for s.peek().text == "." {
		s.next()
		s.next()
	}
	depth := 0
	for {
		t = s.next()
		switch {
		case t.kind == tokenBroken:
			return statement{}, exceptionf(codeSyntaxError, "Syntax error: unterminated %s at position %d (SYNTAX_ERROR)", t.text, t.start+1)
		case t.text == "(" && depth == 0 && (s.peek().is("SELECT") || s.peek().is("WITH")), depth == 0 && (t.is("SELECT") || t.is("WITH") || t.is("WATCH") || t.is("EXPLAIN")):
			return parseInsertSelect(text)
		case t.text == "(" || t.text == "[" || t.text == "{":
			depth++
		case t.text == ")" || t.text == "]" || t.text == "}":
			depth--
		case depth > 0 && t.kind != tokenEnd:
		case t.is("INFILE"):
			return statement{}, exceptionf(codeNotImplemented, "FROM INFILE is not allowed here (NOT_IMPLEMENTED)")
		case t.is("VALUES"):
			return statement{kind: statementInsert, text: text[:t.start], format: "Values", data: t.end}, nil
		case t.is("FORMAT"):
			return parseInsertFormat(text, &s, t)
		case t.kind == tokenEnd || t.text == ";":
			if t.text == ";" && s.next().kind != tokenEnd {
				return statement{}, exceptionf(codeSyntaxError, "Syntax error (Multi-statements are not allowed): failed at position %d (SYNTAX_ERROR)", t.start+1)
			}
			// The line break ends a comment, which would swallow the FORMAT that libchdb adds.
			return statement{kind: statementInsert, text: text[:t.start] + "\n", format: "Values", data: len(text)}, nil
		}
	}
}

// parseInsertFormat reads what follows FORMAT: a name, perhaps SETTINGS, and then data.
func parseInsertFormat(text string, s *scanner, clause token) (statement, error) {
	name := s.next()
	if name.kind != tokenWord {
		return statement{}, exceptionf(codeSyntaxError, "Syntax error: failed at position %d: expected the name of a format (SYNTAX_ERROR)", name.start+1)
	}
	st := statement{kind: statementInsert, text: text[:clause.start], format: name.text, data: name.end}
	if ahead := *s; ahead.next().is("SETTINGS") {
		start := ahead.at - len("SETTINGS")
		for {
			if key := ahead.next(); key.kind != tokenWord || ahead.next().text != "=" {
				break
			}
			value := ahead.next()
			if value.text == "-" {
				value = ahead.next()
			}
			st.data = value.end
			if ahead.peek().text != "," {
				st.text += " " + text[start:st.data]
				break
			}
			ahead.next()
		}
	}
	// One line break parts the statement from the data; all else is data.
	for st.data < len(text) && strings.IndexByte(" \t\f", text[st.data]) >= 0 {
		st.data++
	}
	if st.data < len(text) && text[st.data] == ';' {
		return statement{}, exceptionf(codeSyntaxError, "You have excessive ';' symbol before data for INSERT (SYNTAX_ERROR)")
	}
	if st.data < len(text) && text[st.data] == '\r' {
		st.data++
	}
	if st.data < len(text) && text[st.data] == '\n' {
		st.data++
	}
	return st, nil
}

// parseInsertSelect treats the statement as a whole: its data comes from the engine itself.
func parseInsertSelect(text string) (statement, error) {
	s := scanner{text: text}
	var before token
	for t := s.next(); t.kind != tokenEnd; t = s.next() {
		switch {
		case t.kind == tokenBroken:
			return statement{}, exceptionf(codeSyntaxError, "Syntax error: unterminated %s at position %d (SYNTAX_ERROR)", t.text, t.start+1)
		case (t.is("OUTFILE") && before.is("INTO")) || (t.is("INFILE") && before.is("FROM")):
			return statement{}, exceptionf(codeNotImplemented, "%s is not allowed here (NOT_IMPLEMENTED)", t.text)
		case t.text == ";":
			if s.next().kind != tokenEnd {
				return statement{}, exceptionf(codeSyntaxError, "Syntax error (Multi-statements are not allowed): failed at position %d (SYNTAX_ERROR)", t.start+1)
			}
			return statement{kind: statementOther, text: text[:t.start]}, nil
		}
		before = t
	}
	return statement{kind: statementOther, text: text}, nil
}
