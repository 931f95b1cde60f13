package analyst_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/analyst"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/engine/clickhousetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/schema"
)

func TestMain(m *testing.M) {
	pipelinetest.Main()
	os.Exit(m.Run())
}

func account(organization string) *analyst.Account {
	a := &analyst.Account{Analyst: analyst.Analyst{ID: "1", Name: "ann", Organization: organization, Username: "ann", Expires: time.Date(2027, 11, 28, 0, 0, 0, 0, time.UTC)}, Digest: make([]byte, 32)}
	if organization != "" {
		a.Username = organization + ".ann"
	}
	return a
}

// TestServerStatementsParse has the parser of ClickHouse 26.7 read each statement. The embedded
// engine makes no users, but its parser is that of a server.
func TestServerStatementsParse(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t), pipeline.RoleWriter)
	for _, cluster := range []string{"", "kansa"} {
		server := &analyst.Server{Conn: s.Store.Conn(), Database: "kansa", Cluster: cluster, Limits: engine.ReaderLimits{ExecutionTime: time.Minute, Memory: 1 << 30, ResultRows: 5, RowsToRead: 6, Queries: 2, QueriesPerMinute: 60}}
		for _, organization := range []string{"", "acme"} {
			a := account(organization)
			statements := append(server.Statements(a, "kansa"), server.DropStatements(a)...)
			for _, statement := range statements {
				if err := s.Store.Conn().Exec(t.Context(), "EXPLAIN AST "+statement); err != nil {
					t.Errorf("%s\n%v", statement, err)
				}
			}
			all := strings.Join(statements, "\n")
			if (organization == "acme") != strings.Contains(all, "USING organization = 'acme' AS PERMISSIVE TO `acme.ann`") {
				t.Errorf("the policy of %q:\n%s", organization, all)
			}
			if strings.Index(all, "CREATE ROW POLICY `kansa "+a.Username+"`") > strings.Index(all, "GRANT") {
				t.Errorf("the grant comes before the policy:\n%s", all)
			}
		}
	}
}

// TestServerWithoutAccountManagement adds an analyst on the installed ClickHouse server. Debian's
// knows no CREATE USER: the error says what to do, shows no hash, and leaves no account behind.
func TestServerWithoutAccountManagement(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	s := pipelinetest.Start(t, c, pipeline.RoleWriter)
	addr, _ := clickhousetest.StartServer(t)
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	desk := &analyst.Desk{Store: &analyst.Store{KV: s.Access.KV}, Server: &analyst.Server{Conn: conn, Database: "default"}, Record: func(context.Context, schema.Event) {}}
	served := make(chan error, 1)
	go func() { served <- desk.Serve(ctx, s.Client.NC) }()
	client := analyst.Client{NC: s.Client.NC, By: "test"}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		_, err := client.List(t.Context(), "")
		return err == nil, err
	})
	_, err = client.Add(t.Context(), "acme", "ann", 30)
	if err == nil || !strings.Contains(err.Error(), "create the ClickHouse user acme.ann") || !strings.Contains(err.Error(), "ClickHouse 24.8 or later") || strings.Contains(err.Error(), "BY '") {
		t.Errorf("got %v", err)
	}
	if all, err := client.List(t.Context(), ""); err != nil || len(all) != 0 {
		t.Errorf("got %v, %v", all, err)
	}
	cancel()
	if err := await.Receive(t, await.Limit, "the server of analysts' accounts to end", served); err != nil {
		t.Error(err)
	}
}
