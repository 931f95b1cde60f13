// Package store is Kansa's side of ClickHouse: it opens the connection, migrates the tables, inserts
// blocks of events and reads hours of them, the same way for the embedded engine and for a server.
//
// It owns the SQL, and knows neither the broker nor where exports go.
package store
