package clickhouse

import (
	"fmt"
	"strings"
	"text/template"
)

// Tables are those of one server, or of a cluster of them: there, each shard keeps its part in a replicated table with the
// suffix _local, and a Distributed table with the plain name reads all and writes to the right one. An event lies on the
// shard that the place of its message in the stream says, so that what is stored twice meets.
type Tables struct {
	// Cluster is a name of system.clusters; empty for one server. Its servers need the macros shard and replica, and Keeper.
	Cluster string
}

// Local is the table that holds rows, to be altered; in a cluster, on every server.
func (t Tables) Local(table string) string {
	if t.Cluster == "" {
		return table
	}
	return table + "_local" + t.OnCluster()
}

// OnCluster has a statement run on every server.
func (t Tables) OnCluster() string {
	if t.Cluster == "" {
		return ""
	}
	return " ON CLUSTER " + Quote(t.Cluster)
}

// Window is the setting of a table that says how many inserts are known by their tokens.
func (t Tables) Window() string {
	if t.Cluster == "" {
		return "non_replicated_deduplication_window"
	}
	return "replicated_deduplication_window"
}

// Engine is the engine of a table, replicated in a cluster. Once makes all servers replicas of one table, in place of
// those of each shard.
func (t Tables) Engine(engine, table string, once bool, arguments ...string) string {
	if t.Cluster != "" {
		path, replica := "'/clickhouse/tables/{shard}/{database}/"+table+"'", "'{replica}'"
		if once {
			path, replica = "'/clickhouse/tables/{database}/"+table+"'", "'{shard}-{replica}'"
		}
		engine, arguments = "Replicated"+engine, append([]string{path, replica}, arguments...)
	}
	if len(arguments) == 0 {
		return engine
	}
	return engine + "(" + strings.Join(arguments, ", ") + ")"
}

// distributed is the statement that makes the table over all shards.
func (t Tables) distributed(table, by string) string {
	if t.Cluster == "" {
		return ""
	}
	return fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s%s AS %s_local\nENGINE = Distributed(%s, currentDatabase(), %s_local, %s);",
		table, t.OnCluster(), table, quoteText(t.Cluster), table, by)
}

func (t Tables) write(text string) (string, error) {
	funcs := template.FuncMap{
		"local": func(table string) string { return strings.TrimSuffix(t.Local(table), t.OnCluster()) },
		"engine": func(engine, table string, arguments ...string) string {
			return t.Engine(engine, table, false, arguments...)
		},
		"distributed": t.distributed,
	}
	parsed, err := template.New("").Funcs(funcs).Parse(text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = parsed.Execute(&b, t)
	return b.String(), err
}

// Quote quotes a name.
func Quote(name string) string {
	return "`" + strings.NewReplacer("\\", "\\\\", "`", "\\`").Replace(name) + "`"
}

func quoteText(s string) string {
	return "'" + strings.NewReplacer("\\", "\\\\", "'", "\\'").Replace(s) + "'"
}
