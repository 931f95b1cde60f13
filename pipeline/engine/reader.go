package engine

import "strings"

// Reader is a further user, who may only read. It is what stands in for a row policy, which libchdb
// lacks, so it is made to fail closed: statements, table functions, databases and settings that are not
// known to be harmless are refused. Proven by trying: merge() and mergeTreeIndex() pass by
// additional_table_filters, the query cache hands one reader's answers to another, the function file()
// reads any file, and system tables tell of everybody's rows and queries.
type Reader struct {
	Username string
	Password string
	// Settings hold for all of the reader's queries, whatever they ask for. With additional_table_filters
	// they confine a reader to some rows; name every table in it, for one that is not named shows whole.
	Settings map[string]string
}

// readerTableFunctions make rows of nothing, or only of what is filtered itself.
var readerTableFunctions = map[string]bool{
	"numbers": true, "numbers_mt": true, "zeros": true, "zeros_mt": true, "generateseries": true, "generate_series": true,
	"values": true, "null": true, "view": true, "format": true,
}

// readerDenied are ordinary functions that reach around the tables.
var readerDenied = map[string]bool{"file": true, "joinget": true, "joingetornull": true, "catboostevaluate": true, "getserversetting": true}

// readerSettings are those that change how an answer looks or when it is given up.
func readerSetting(name string) bool {
	for _, prefix := range []string{"output_format_", "format_", "http_", "max_result_", "max_execution_", "network_"} {
		if strings.HasPrefix(name, prefix) {
			return name != "format_schema" && name != "format_schema_source"
		}
	}
	switch name {
	case "date_time_output_format", "bool_true_representation", "bool_false_representation", "enable_http_compression",
		"max_block_size", "max_threads", "max_rows_to_read", "max_bytes_to_read", "result_overflow_mode",
		"timeout_overflow_mode", "async_insert", "session_timezone", "send_progress_in_http_headers":
		return true
	}
	return false
}

// systemDatabase knows the databases that tell of everybody's tables.
func systemDatabase(name string) bool {
	return strings.EqualFold(name, "system") || strings.EqualFold(name, "information_schema")
}

func readonlyf(format string, args ...any) *exception {
	return exceptionf(codeReadonly, format+" (READONLY)", args...)
}

// checkReader refuses what a reader might get other people's rows by. tableFunctions are all that the
// engine has, in lower case.
func (q *request) checkReader(st statement, tableFunctions map[string]bool) error {
	if systemDatabase(q.database) {
		return readonlyf("A reader may not use the database %s", q.database)
	}
	for name := range q.settings {
		if !readerSetting(name) {
			return readonlyf("Cannot modify %s setting in readonly mode", quoteString(name))
		}
	}
	if len(q.external) > 0 {
		return readonlyf("A reader may not send tables")
	}
	if st.kind == statementInsert {
		return readonlyf("Cannot execute query in readonly mode")
	}
	s := scanner{text: st.text}
	first := s.peek()
	switch {
	case st.kind == statementSelect, first.is("DESCRIBE"), first.is("DESC"), first.is("EXISTS"):
	default:
		return readonlyf("A reader may only SELECT, DESCRIBE and ask whether a table EXISTS")
	}
	var before token
	for t := s.next(); t.kind != tokenEnd; t = s.next() {
		name := strings.ToLower(t.text)
		quoted := t.kind == tokenQuoted
		if quoted {
			name = strings.ToLower(st.text[t.start+1 : t.end-1])
		}
		next := s.peek()
		called := next.kind == tokenSign && next.text == "("
		switch {
		case t.kind == tokenBroken:
			return readonlyf("A reader's query has an unterminated %s", t.text)
		case quoted && (strings.Contains(name, `\`) || called):
			return readonlyf("A reader may neither escape within quoted names nor call them")
		case t.kind == tokenSign && t.text[0] >= 0x80:
			return readonlyf("A reader's query may have letters beyond ASCII only in quotes")
		case (t.kind == tokenWord || quoted) && systemDatabase(name) && next.text == ".":
			return readonlyf("A reader may not use the database %s", name)
		case t.is("Identifier") && before.text == ":":
			return readonlyf("A reader may not name tables by parameters")
		case t.kind == tokenWord && called && (readerDenied[name] || tableFunctions[name] && !readerTableFunctions[name]):
			return readonlyf("A reader may not call %s", t.text)
		}
		before = t
	}
	return nil
}
