package engine

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Reader is a user that may only read some tables of one database. It stands in for the row
// policies and quotas of a server, which libchdb lacks, so it fails closed: what is not known to be
// harmless is refused.
//
// The defence has four layers. confine rewrites each statement from the tokens that it has checked,
// so that the engine sees nothing else. confinement filters each table of the database.
// orderedFilters keeps the optimizer from evaluating the reader's expressions on rows that the
// filter removes, because an exception would report their values. readonly = 1 comes last.
type Reader struct {
	// ID identifies the account for as long as it lives; a later account with the same name has
	// another.
	ID       string `json:"id"`
	Username string `json:"username"`
	// Digest is the SHA-256 of the password. It is safe only for passwords that a program made at
	// random.
	Digest []byte `json:"digest"`
	// Until is when the account expires. Zero means never.
	Until time.Time `json:"until,omitzero"`
	// Database is the only one that the reader sees.
	Database string `json:"database"`
	// Tables maps the tables that the reader may read to a condition on their rows. An empty
	// condition shows all rows. Every other table is refused.
	Tables map[string]string `json:"tables"`
	// Group is what the reader shares Limits.GroupQueries with.
	Group  string       `json:"group,omitempty"`
	Limits ReaderLimits `json:"limits"`
}

// ReaderLimits bound what one reader may use. Zero means no limit.
type ReaderLimits struct {
	ExecutionTime    time.Duration `json:"execution_time,omitempty"`
	Memory           int64         `json:"memory,omitempty"`
	ResultRows       int64         `json:"result_rows,omitempty"`
	RowsToRead       int64         `json:"rows_to_read,omitempty"`
	Queries          int           `json:"queries,omitempty"`       // at once
	GroupQueries     int           `json:"group_queries,omitempty"` // at once, of all readers of a group
	QueriesPerMinute int           `json:"queries_per_minute,omitempty"`
}

// readerBody bounds a reader's statement.
const readerBody = 4 << 20

// readerTableFunctions make rows of nothing, or only of what is filtered itself.
var readerTableFunctions = map[string]bool{
	"numbers": true, "numbers_mt": true, "zeros": true, "zeros_mt": true, "generateseries": true, "generate_series": true,
	"values": true, "null": true, "view": true, "format": true, "primes": true,
}

// readerDenied are ordinary functions that reach around the tables, into files, the network, other
// settings, or the process.
var readerDenied = setOf(
	"file", "joinget", "joingetornull", "catboostevaluate", "modelevaluate", "evalmlmethod", "getserversetting", "getmergetreesetting", "getmacro",
	"hascolumnintable", "reversednsquery", "showcertificate", "getclienthttpheader", "getserverport", "tcpport",
	"filesystemcapacity", "filesystemavailable", "filesystemunreserved", "getoskernelversion", "buildid", "serveruuid", "zookeepersessionuptime",
	"addresstoline", "addresstolinewithinlines", "addresstosymbol", "demangle", "logtrace", "tid", "transactionid", "transactionlatestsnapshot",
	"transactionoldestsnapshot", "generateserialid", "naivebayesclassifier", "naivebayesclassifierwithprob", "naivebayesclassifierwithallprobs",
	"timeseriesstoretags", "hasthreadfuzzer", "chdb", "shownest", "partitionid", "dumpcolumnstructure", "currentschemas", "detectlanguage",
	"detectlanguagemixed", "detectcharset", "detectlanguageunknown", "detecttonality", "lemmatize", "synonyms", "stem",
)

// readerDeniedPrefixes are families of functions: those of dictionaries, of models on the network,
// and internal ones.
var readerDeniedPrefixes = []string{"dict", "ai", "region", "__"}

// readerHiddenColumns are virtual columns that say how many rows others have: they count the rows that the filter removes.
var readerHiddenColumns = setOf("_part_offset", "_part_starting_offset", "_part_granule_offset", "_block_number", "_block_offset", "_part_index", "_part_data_version", "_parent_part_offset")

func setOf(names ...string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, n := range names {
		set[n] = true
	}
	return set
}

// deniedFunction reports whether a function, in lower case, is refused.
func (h *handler) deniedFunction(name string) bool {
	if readerDenied[name] {
		return true
	}
	if !h.functions[name] {
		return false
	}
	return slices.ContainsFunc(readerDeniedPrefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// readerSetting reports whether a setting changes only how an answer looks or when it is given up.
func readerSetting(name string) bool {
	if strings.Contains(name, "schema") || strings.Contains(name, "template") || strings.Contains(name, "url") || strings.Contains(name, "path") {
		return false // these name files and addresses
	}
	for _, prefix := range []string{"output_format_", "format_csv_", "format_tsv_", "format_custom_", "http_headers_", "max_result_", "max_execution_", "network_compression_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	switch name {
	case "date_time_output_format", "bool_true_representation", "bool_false_representation", "enable_http_compression", "http_zlib_compression_level",
		"http_write_exception_in_output_format", "max_block_size", "max_threads", "result_overflow_mode", "timeout_overflow_mode", "async_insert",
		"session_timezone", "send_progress_in_http_headers", "interactive_delay", "join_use_nulls", "readonly":
		return true
	}
	return false
}

func readonlyf(format string, args ...any) *exception {
	return exceptionf(codeReadonly, format+" (READONLY)", args...)
}

func deniedf(format string, args ...any) *exception {
	return exceptionf(codeAccessDenied, format+" (ACCESS_DENIED)", args...)
}

// catalogue is what the engine has at the moment: its databases, and the tables of one of them.
type catalogue struct {
	databases map[string]bool
	tables    []string
}

// catalogueOf asks the engine.
func catalogueOf(s *session, database string) (*catalogue, error) {
	res, err := s.query("SELECT name, '' FROM system.databases UNION ALL SELECT database, name FROM system.tables WHERE database = "+quoteString(database), "TabSeparatedRaw", nil)
	if err != nil {
		return nil, err
	}
	defer res.close()
	c := &catalogue{databases: map[string]bool{}}
	for line := range strings.Lines(string(res.data())) {
		name, table, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		c.databases[name] = true
		if table != "" {
			c.tables = append(c.tables, table)
		}
	}
	return c, nil
}

// refused are the tables of the database that the reader may not read.
func (c *catalogue) refused(r *Reader) map[string]bool {
	set := map[string]bool{}
	for _, t := range c.tables {
		if _, ok := r.Tables[t]; !ok {
			set[t] = true
		}
	}
	return set
}

// checkRequest refuses what surrounds the statement.
func (q *request) checkRequest() error {
	switch q.database {
	case "", "default", q.reader.Database:
		q.database = q.reader.Database
	default:
		return deniedf("Not enough privileges: %s may use the database %s only", q.reader.Username, q.reader.Database)
	}
	for name, value := range q.settings {
		if !readerSetting(name) || name == "readonly" && value != "1" && value != "2" {
			return readonlyf("Cannot modify %s setting in readonly mode", quoteString(name))
		}
	}
	delete(q.settings, "readonly") // clients that ask for it are content with ours
	if len(q.external) > 0 {
		return readonlyf("A reader cannot send tables")
	}
	return nil
}

// confine checks a reader's statement token by token and returns it rebuilt from those tokens,
// without comments and with system tables replaced by their masks. It refuses each token that the
// engine could read in another way.
func (h *handler) confine(q *request, st statement, known *catalogue) (statement, error) {
	if st.kind == statementInsert {
		return st, readonlyf("Cannot execute query in readonly mode")
	}
	s := scanner{text: st.text}
	first := s.peek()
	refused := known.refused(q.reader)
	show := first.is("SHOW")
	switch {
	case st.kind == statementSelect, first.is("DESCRIBE"), first.is("DESC"), first.is("EXISTS"):
	case show:
		text, err := confineShow(st.text, q.reader, known)
		if err != nil {
			return st, err
		}
		s = scanner{text: text}
	default:
		return st, readonlyf("A reader can only SELECT, SHOW DATABASES, SHOW TABLES, SHOW COLUMNS, DESCRIBE and EXISTS")
	}
	var b strings.Builder
	var before, beforeThat token
	for t := s.next(); t.kind != tokenEnd; t = s.next() {
		text := s.text[min(t.start, len(s.text)):t.end]
		next := s.peek()
		name, err := h.confineToken(q, s.text, t, next, before, beforeThat, known, refused)
		if err != nil {
			return st, err
		}
		if t.start > before.end {
			b.WriteByte(' ')
		}
		if name != "" && next.text == "." && (t.kind == tokenWord || t.kind == tokenQuoted) && systemDatabase(name) {
			after := s
			after.next()
			mask, err := maskOf(name, nameOf(after.text, after.next()))
			if err != nil {
				return st, err
			}
			text = mask
		}
		b.WriteString(text)
		beforeThat, before = before, t
	}
	st.text = b.String()
	if show || st.kind != statementSelect {
		st.kind = statementOther
	}
	return st, nil
}

// nameOf is what a word or quoted name stands for.
func nameOf(text string, t token) string {
	switch t.kind {
	case tokenWord:
		return t.text
	case tokenQuoted:
		return text[t.start+1 : t.end-1]
	default:
		return ""
	}
}

// confineToken refuses a token that could reach beyond the reader's rows, and returns the name that
// it is.
func (h *handler) confineToken(q *request, text string, t, next, before, beforeThat token, known *catalogue, refused map[string]bool) (string, error) {
	name := nameOf(text, t)
	lower := strings.ToLower(name)
	quoted := t.kind == tokenQuoted
	called := next.kind == tokenSign && next.text == "("
	switch {
	case t.kind == tokenBroken:
		return "", readonlyf("A reader's query has an unterminated %s", t.text)
	case t.kind == tokenString && (text[t.start] != '\'' || before.kind == tokenWord && before.end == t.start):
		return "", readonlyf("A reader's query cannot have heredocs or strings that follow a word without a space")
	case t.kind == tokenString && (before.is("FROM") || before.is("JOIN") || before.is("TABLE")):
		return "", readonlyf("A reader cannot name tables by strings")
	case quoted && (strings.ContainsAny(name, "\\\"`\x00/") || called):
		return "", readonlyf("A reader's quoted names cannot have escapes, quotes or slashes, or be called")
	case t.kind == tokenSign && (t.text[0] >= 0x80 || t.text[0] < 0x20 || t.text == `\` || t.text == ";"):
		return "", readonlyf("A reader's query has %q, which it can have only in quotes", t.text)
	case t.kind == tokenWord && strings.Contains(name, "$"):
		return "", readonlyf("A reader's query has %q, which it can have only in quotes", "$")
	case t.is("EXPLAIN"), t.is("PARALLEL"), t.is("OUTFILE"), t.is("INFILE"), t.is("PREWHERE"):
		return "", readonlyf("A reader cannot use %s", strings.ToUpper(name))
	case t.is("SETTINGS") && before.text != ".":
		return "", readonlyf("A reader's query cannot have SETTINGS: give them as parameters of the request")
	case strings.EqualFold(name, "Identifier") && before.text == ":":
		return "", readonlyf("A reader cannot name tables or columns by parameters")
	case t.kind == tokenWord && before.text != "." && readerDenied[lower]:
		return "", deniedf("Not enough privileges: a reader cannot use the function %s", name)
	case quoted && (before.is("APPLY") || before.text == "(" && beforeThat.is("APPLY")):
		return "", readonlyf("A reader cannot apply functions with quoted names")
	case t.kind == tokenWord && (called || before.is("APPLY") || before.text == "(" && beforeThat.is("APPLY")) &&
		(h.deniedFunction(lower) || h.tableFunctions[lower] && !readerTableFunctions[lower]):
		return "", deniedf("Not enough privileges: a reader cannot use the function %s", name)
	case name != "" && next.text == "." && !systemDatabase(name) && known.databases[name] && name != q.reader.Database:
		return "", deniedf("Not enough privileges: %s may use the database %s only", q.reader.Username, q.reader.Database)
	case readerHiddenColumns[name]:
		return "", deniedf("Not enough privileges: a reader cannot read the column %s", name)
	case name != "" && refused[name]:
		return "", deniedf("Not enough privileges: %s cannot read %s", q.reader.Username, name)
	}
	return name, nil
}

// confineShow takes the forms of SHOW that are known, and no others.
func confineShow(text string, r *Reader, known *catalogue) (string, error) {
	s := scanner{text: text}
	s.next() // SHOW
	what := s.next()
	full := what.is("FULL")
	if full {
		what = s.next()
	}
	switch {
	case what.is("DATABASES") && !full && s.peek().kind == tokenEnd:
		return "SELECT name FROM system.databases ORDER BY name", nil
	case what.is("TABLES"), what.is("COLUMNS"), what.is("FIELDS"):
	default:
		return "", readonlyf("A reader can SHOW DATABASES, SHOW TABLES and SHOW COLUMNS only")
	}
	var before token
	for t := s.next(); t.kind != tokenEnd; t = s.next() {
		name := nameOf(text, t)
		if (before.is("FROM") || before.is("IN")) && name != r.Database && (systemDatabase(name) || known.databases[name]) {
			return "", deniedf("Not enough privileges: %s may use the database %s only", r.Username, r.Database)
		}
		before = t
	}
	return text, nil
}

// orderedFilters keep the filters of tables before everything that a reader wrote. They also keep
// caches of one reader's answers from another, and counts of all rows out of the answers.
var orderedFilters = map[string]string{
	"query_plan_merge_filters": "0", "query_plan_filter_push_down": "0", "query_plan_optimize_prewhere": "0", "optimize_prewhere_after_pushdown": "0",
	"optimize_move_to_prewhere": "1", "optimize_move_to_prewhere_if_final": "1", "query_plan_merge_filter_into_join_condition": "0",
	"query_plan_convert_join_to_in": "0", "query_plan_split_filter": "0", "enable_join_runtime_filters": "0", "use_join_disjunctions_push_down": "0",
	"enable_optimize_predicate_expression": "0", "use_query_cache": "0", "use_query_condition_cache": "0", "use_top_k_dynamic_filtering": "0",
	"use_skip_indexes_for_top_k": "0", "query_plan_optimize_lazy_final": "0", "enable_parallel_replicas": "0", "output_format_write_statistics": "0",
	"allow_introspection_functions": "0", "allow_experimental_analyzer": "1",
	// A dictionary has the values of all rows of a part.
	"output_format_arrow_low_cardinality_as_dictionary": "0",
}

// confinement are the settings of each of a reader's queries. They come after the reader's own.
func (r *Reader) confinement(known *catalogue) map[string]string {
	settings := maps.Clone(orderedFilters)
	// After all that the API asks: see package store.
	settings["priority"], settings["low_priority_query_wait_time_ms"], settings[SettingNice] = "5", "1000", "15"
	filters := map[string]string{}
	names := make([]string, 0, len(r.Tables))
	for table, condition := range r.Tables {
		names = append(names, quoteString(table))
		if condition != "" {
			filters[r.Database+"."+table] = condition
		}
	}
	for table := range known.refused(r) {
		filters[r.Database+"."+table] = "0"
	}
	slices.Sort(names)
	list := strings.Join(names, ", ")
	if list == "" {
		list = "''"
	}
	database := quoteString(r.Database)
	filters["system.databases"] = "name = " + database
	filters["system.tables"] = "database = " + database + " AND name IN (" + list + ")"
	filters["system.columns"] = "database = " + database + " AND table IN (" + list + ")"
	pairs := make([]string, 0, len(filters))
	for _, table := range slices.Sorted(maps.Keys(filters)) {
		pairs = append(pairs, quoteString(table)+": "+quoteString(filters[table]))
	}
	settings["additional_table_filters"] = "{" + strings.Join(pairs, ", ") + "}"
	limit := func(name string, value int64) {
		if value > 0 {
			settings[name] = strconv.FormatInt(value, 10)
		}
	}
	l := &r.Limits
	limit("max_execution_time", int64(cmp.Or(max(l.ExecutionTime, time.Second)/time.Second, 1)))
	if l.ExecutionTime == 0 {
		delete(settings, "max_execution_time")
	}
	limit("max_memory_usage", l.Memory)
	limit("max_result_bytes", l.Memory)
	limit("max_result_rows", l.ResultRows)
	limit("max_rows_to_read", l.RowsToRead)
	settings["result_overflow_mode"], settings["timeout_overflow_mode"], settings["read_overflow_mode"] = "throw", "throw", "throw"
	return settings
}
