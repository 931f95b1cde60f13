package store

import (
	"context"
	"fmt"
	"strings"

	migrations "github.com/kansa-audit/kansa/schema/clickhouse"
)

// Condition is how ClickHouse itself is doing: what its own tables say of ours. In a cluster it is the worst of all servers.
type Condition struct {
	Version string
	// Migration is the newest that the tables have; Wanted the newest of this program.
	Migration, Wanted int
	// Disks are those of the servers, not of an embedded engine, whose disk is this machine's.
	Disks []ServerDisk
	// MostParts is the most parts that a table's partition is in, and where. Merges keep it small while they keep up.
	MostParts uint64
	PartsOf   string
	// Broken are parts that ClickHouse set aside because it could not read them, with an example.
	Broken        uint64
	BrokenExample string
	// ReadOnly replicas take no inserts; Queue is the longest queue of a replica, and Delay its delay in seconds.
	ReadOnly, Queue, Delay uint64
}

// ServerDisk is one of a server's.
type ServerDisk struct {
	Name, Path  string
	Free, Total uint64
}

// system is a table of ClickHouse's own, of all servers.
func (s *Store) system(table string) string {
	if s.tables.Cluster == "" {
		return "system." + table
	}
	return "clusterAllReplicas(" + migrations.Quote(s.tables.Cluster) + ", system." + table + ")"
}

// setAside are reasons for which a part is detached that nobody asked for.
const setAside = "reason LIKE '%broken%' OR reason IN ('unexpected', 'noquorum', 'mutation-unfinished')"

// Condition asks ClickHouse how it is.
func (s *Store) Condition(ctx context.Context) (*Condition, error) {
	c := &Condition{}
	all, err := s.tables.Migrations()
	if err != nil {
		return nil, err
	}
	c.Wanted = all[len(all)-1].Version
	var migration uint32
	for what, ask := range map[string]func() error{
		"its version": func() error { return s.conn.QueryRow(ctx, "SELECT version()").Scan(&c.Version) },
		"the migrations": func() error {
			return s.conn.QueryRow(ctx, "SELECT max(version) FROM kansa_migrations").Scan(&migration)
		},
		"its parts": func() error {
			return s.conn.QueryRow(ctx, `SELECT max(n), argMax(place, n) FROM (SELECT hostName() AS host, concat(table, ' ', partition) AS place, count() AS n FROM `+
				s.system("parts")+` WHERE active AND database = currentDatabase() GROUP BY host, place)`).Scan(&c.MostParts, &c.PartsOf)
		},
		"its detached parts": func() error {
			return s.conn.QueryRow(ctx, "SELECT count(), any(concat(table, '/detached/', name)) FROM "+s.system("detached_parts")+
				" WHERE database = currentDatabase() AND ("+setAside+")").Scan(&c.Broken, &c.BrokenExample)
		},
		"its disks": func() error { return s.disks(ctx, c) },
	} {
		if err := ask(); err != nil {
			return nil, fmt.Errorf("ask ClickHouse for %s: %w", what, err)
		}
	}
	c.Migration = int(migration)
	if s.tables.Cluster != "" {
		err = s.conn.QueryRow(ctx, "SELECT countIf(is_readonly), toUInt64(max(queue_size)), toUInt64(max(absolute_delay)) FROM "+s.system("replicas")+
			" WHERE database = currentDatabase()").Scan(&c.ReadOnly, &c.Queue, &c.Delay)
		if err != nil {
			return nil, fmt.Errorf("ask ClickHouse for its replicas: %w", err)
		}
	}
	return c, nil
}

func (s *Store) disks(ctx context.Context, c *Condition) error {
	rows, err := s.conn.Query(ctx, "SELECT concat(hostName(), ' ', name), path, free_space, total_space FROM "+s.system("disks")+" WHERE is_remote = 0")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var d ServerDisk
		if err := rows.Scan(&d.Name, &d.Path, &d.Free, &d.Total); err != nil {
			return err
		}
		d.Name = strings.TrimSpace(d.Name)
		c.Disks = append(c.Disks, d)
	}
	return rows.Err()
}
