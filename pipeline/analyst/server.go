package analyst

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/kansa-audit/kansa/pipeline/engine"
	migrations "github.com/kansa-audit/kansa/schema/clickhouse"
)

// Tables are those that analysts may read. Both have a column organization.
var Tables = []string{"audit_events", "audit_event_counts"}

// Filter is the condition that confines an analyst to an organization; empty for all.
func Filter(organization string) string {
	if organization == "" {
		return ""
	}
	return "organization = " + quoteString(organization)
}

func quoteString(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// Server makes accounts on a ClickHouse server or cluster, as Kansa's own user.
type Server struct {
	Conn     driver.Conn
	Database string
	Cluster  string
	Limits   engine.ReaderLimits
}

// names of the parts of an account. An account on the server has the name of the analyst.
func quota(a *Account) string { return migrations.Quote("kansa " + a.Username) }

// tables are those with policies: in a cluster the local ones as well.
func (s *Server) tables() string {
	var all []string
	for _, t := range Tables {
		all = append(all, migrations.Quote(s.Database)+"."+t)
		if s.Cluster != "" {
			all = append(all, migrations.Quote(s.Database)+"."+t+"_local")
		}
	}
	return strings.Join(all, ", ")
}

// Statements make an account. own is Kansa's user: a table with a row policy shows nothing to users
// without one. The policy comes before the grant, so the account never sees more.
func (s *Server) Statements(a *Account, own string) []string {
	on := migrations.Tables{Cluster: s.Cluster}.OnCluster()
	user := migrations.Quote(a.Username)
	using := Filter(a.Organization)
	if using == "" {
		using = "1"
	}
	settings := []string{"readonly = 1 CONST", "result_overflow_mode = 'throw' CONST", "timeout_overflow_mode = 'throw' CONST"}
	limit := func(name string, value int64) {
		if value > 0 {
			settings = append(settings, fmt.Sprintf("%s = %d MIN 1 MAX %d", name, value, value))
		}
	}
	l := s.Limits
	limit("max_execution_time", int64(l.ExecutionTime.Seconds()))
	limit("max_memory_usage", l.Memory)
	limit("max_result_rows", l.ResultRows)
	limit("max_rows_to_read", l.RowsToRead)
	limit("max_concurrent_queries_for_user", int64(l.Queries))
	policy := migrations.Quote("kansa " + a.Username)
	statements := []string{
		"CREATE ROW POLICY IF NOT EXISTS kansa_all" + on + " ON " + s.tables() + " FOR SELECT USING 1 TO " + migrations.Quote(own),
		"CREATE USER " + user + on + " IDENTIFIED WITH sha256_hash BY '" + hex.EncodeToString(a.Digest) + "' VALID UNTIL '" + a.Expires.UTC().Format("2006-01-02 15:04:05") + " UTC' HOST ANY DEFAULT DATABASE " + migrations.Quote(s.Database) + " SETTINGS " + strings.Join(settings, ", "),
		"CREATE ROW POLICY " + policy + on + " ON " + s.tables() + " FOR SELECT USING " + using + " AS PERMISSIVE TO " + user,
	}
	if l.QueriesPerMinute > 0 {
		statements = append(statements, fmt.Sprintf("CREATE QUOTA %s%s KEYED BY user_name FOR INTERVAL 1 minute MAX queries = %d TO %s", quota(a), on, l.QueriesPerMinute, user))
	}
	for _, t := range Tables {
		statements = append(statements, "GRANT"+on+" SELECT ON "+migrations.Quote(s.Database)+"."+t+" TO "+user)
		if s.Cluster != "" {
			statements = append(statements, "GRANT"+on+" SELECT ON "+migrations.Quote(s.Database)+"."+t+"_local TO "+user)
		}
	}
	return statements
}

// DropStatements remove an account and end its queries.
func (s *Server) DropStatements(a *Account) []string {
	on := migrations.Tables{Cluster: s.Cluster}.OnCluster()
	user := migrations.Quote(a.Username)
	return []string{
		"DROP USER IF EXISTS " + user + on,
		"KILL QUERY" + on + " WHERE user = " + quoteString(a.Username) + " ASYNC",
		"DROP ROW POLICY IF EXISTS " + migrations.Quote("kansa "+a.Username) + on + " ON " + s.tables(),
		"DROP QUOTA IF EXISTS " + quota(a) + on,
	}
}

func (s *Server) create(ctx context.Context, a *Account) error {
	var own string
	if err := s.Conn.QueryRow(ctx, "SELECT currentUser()").Scan(&own); err != nil {
		return s.explain("create", a, "Kansa's user", err)
	}
	made := false
	for _, statement := range s.Statements(a, own) {
		if err := s.Conn.Exec(ctx, statement); err != nil {
			err = s.explain("create", a, own, err)
			if made { // never a user that was there before
				err = errors.Join(err, s.drop(ctx, a))
			}
			return err
		}
		made = made || strings.HasPrefix(statement, "CREATE USER ")
	}
	return nil
}

func (s *Server) drop(ctx context.Context, a *Account) error {
	for _, statement := range s.DropStatements(a) {
		if err := s.Conn.Exec(ctx, statement); err != nil {
			return s.explain("remove", a, "Kansa's user", err)
		}
	}
	return nil
}

// Codes of ClickHouse's exceptions.
const (
	codeUnknownFunction = 46
	codeUnknownTable    = 60
	codeSyntaxError     = 62
	codeUserExists      = 493
	codeNoAccess        = 497
)

// explain says what to do about a refusal of the server. The statement is left out: it has the hash
// of the password.
func (s *Server) explain(what string, a *Account, own string, err error) error {
	remedy := "look at the server's log"
	var e *clickhouse.Exception
	if errors.As(err, &e) {
		switch e.Code {
		case codeNoAccess:
			remedy = "let " + own + " manage accounts: GRANT ACCESS MANAGEMENT ON *.*, KILL QUERY ON *.*, and SELECT ON " + s.Database + ".* WITH GRANT OPTION; or create analysts by hand, see deploy/clickhouse/analysts.sql"
		case codeSyntaxError, codeUnknownFunction:
			remedy = "the server does not know these statements: use ClickHouse 24.8 or later"
		case codeUserExists:
			remedy = "the server has such a user: choose another name"
		case codeUnknownTable:
			remedy = "start Kansa's writer once, which makes the tables"
		}
		err = fmt.Errorf("code %d, %s", e.Code, e.Name)
	}
	return fmt.Errorf("%s the ClickHouse user %s: %w: %s", what, a.Username, err, remedy)
}
