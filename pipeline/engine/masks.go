package engine

import (
	"fmt"
	"regexp"
	"strings"
)

// Databases with masks of system tables. They live in memory and are made at each start.
const (
	maskSystem = "reader_system"
	maskSchema = "reader_schema"
)

// plainSystem are system tables that say nothing of data, queries, users, files or the network.
var plainSystem = setOf("one", "numbers", "numbers_mt", "zeros", "zeros_mt", "functions", "data_type_families", "settings", "formats", "table_functions",
	"table_engines", "time_zones", "keywords", "collations", "aggregate_function_combinators", "codecs", "contributors", "licenses")

// masks are system tables without paths, statements, sizes and counts, by the database and name of
// the mask. Readers see rows of their own database only, by the filters of the tables below.
var masks = map[string]map[string]string{
	maskSystem: {
		"databases": `SELECT name, engine, '' AS data_path, '' AS metadata_path, toUUID('00000000-0000-0000-0000-000000000000') AS uuid, '' AS engine_full, comment FROM system.databases`,
		"tables": `SELECT database, name, toUUID('00000000-0000-0000-0000-000000000000') AS uuid, engine, toUInt8(0) AS is_temporary, CAST([], 'Array(String)') AS data_paths, '' AS metadata_path,
 toDateTime(0) AS metadata_modification_time, CAST([], 'Array(String)') AS dependencies_database, CAST([], 'Array(String)') AS dependencies_table, '' AS create_table_query, '' AS engine_full,
 '' AS as_select, partition_key, sorting_key, primary_key, sampling_key, '' AS storage_policy, CAST(NULL, 'Nullable(UInt64)') AS total_rows, CAST(NULL, 'Nullable(UInt64)') AS total_bytes,
 CAST(NULL, 'Nullable(UInt64)') AS parts, CAST(NULL, 'Nullable(UInt64)') AS active_parts, comment, has_own_data FROM system.tables`,
		"columns": `SELECT database, table, name, type, position, default_kind, default_expression, toUInt64(0) AS data_compressed_bytes, toUInt64(0) AS data_uncompressed_bytes, toUInt64(0) AS marks_bytes,
 comment, is_in_partition_key, is_in_sorting_key, is_in_primary_key, is_in_sampling_key, compression_codec, character_octet_length, numeric_precision, numeric_precision_radix, numeric_scale,
 datetime_precision FROM system.columns`,
	},
	maskSchema: {
		"schemata": `SELECT name AS catalog_name, name AS schema_name, 'default' AS schema_owner FROM system.databases`,
		"tables": `SELECT database AS table_catalog, database AS table_schema, name AS table_name, if(engine LIKE '%View', 'VIEW', 'BASE TABLE') AS table_type,
 CAST(NULL, 'Nullable(UInt64)') AS table_rows, CAST(NULL, 'Nullable(UInt64)') AS data_length, 'utf8mb4_0900_ai_ci' AS table_collation, comment AS table_comment FROM system.tables`,
		"columns": `SELECT database AS table_catalog, database AS table_schema, table AS table_name, name AS column_name, position AS ordinal_position, default_expression AS column_default,
 if(type LIKE 'Nullable(%', 'YES', 'NO') AS is_nullable, type AS data_type, type AS column_type, character_octet_length AS character_maximum_length,
 numeric_precision AS numeric_precision, numeric_precision_radix AS numeric_precision_radix, numeric_scale AS numeric_scale, datetime_precision AS datetime_precision, comment AS column_comment FROM system.columns`,
	},
}

var maskColumn = regexp.MustCompile(` AS (\w+)`)

// upper adds the columns of a mask of information_schema in upper case, as a server has them.
func upper(query string) string {
	columns := "*"
	for _, m := range maskColumn.FindAllStringSubmatch(query, -1) {
		columns += ", " + m[1] + " AS " + strings.ToUpper(m[1])
	}
	return "SELECT " + columns + " FROM (" + query + ")"
}

// systemDatabase reports whether a database tells of everybody's tables.
func systemDatabase(name string) bool {
	return strings.EqualFold(name, "system") || strings.EqualFold(name, "information_schema")
}

// maskOf is the database that a reader reads in place of system or information_schema.
func maskOf(database, table string) (string, error) {
	switch {
	case database == "system" && plainSystem[table]:
		return "system", nil
	case database == "system" && masks[maskSystem][table] != "":
		return maskSystem, nil
	case strings.EqualFold(database, "information_schema") && masks[maskSchema][strings.ToLower(table)] != "" && (table == strings.ToLower(table) || table == strings.ToUpper(table)):
		return maskSchema, nil
	}
	return "", deniedf("Not enough privileges: a reader cannot read %s.%s", database, table)
}

// makeMasks makes the databases of masks.
func makeMasks(s *session) error {
	for database, tables := range masks {
		statements := []string{"DROP DATABASE IF EXISTS " + database, "CREATE DATABASE " + database + " ENGINE = Memory"}
		for name, query := range tables {
			if database == maskSchema {
				query = upper(query)
				statements = append(statements, "CREATE VIEW "+database+"."+strings.ToUpper(name)+" AS "+query)
			}
			statements = append(statements, "CREATE VIEW "+database+"."+name+" AS "+query)
		}
		for _, statement := range statements {
			if err := s.exec(statement); err != nil {
				return fmt.Errorf("make the tables that readers see in place of system's: %w", err)
			}
		}
	}
	return nil
}
