// Package engine runs ClickHouse without a server to install: libchdb, the real engine as a library,
// loaded in a child process that speaks ClickHouse's HTTP protocol on loopback.
//
// It owns the child (Start, Engine), the data directory with its lock and credentials, and the protocol
// (Serve). It never knows a table of Kansa's: whatever talks to it does so through clickhouse-go, by the
// address and password that it gives out, and cannot tell it from a server.
//
// The engine lives in a process of its own because a fault in a library of 500 MB must not take the
// stream down with it. When the child dies it is started again on the same socket, which the parent keeps
// open: who connects meanwhile waits, and is not refused. A block is stored whole or not at all, and what
// a client has no answer for it must ask about.
//
// Besides the owner there are readers (Reader), who see some rows of some tables of one database and can
// harm nothing else. The owner sets them while the engine runs (Engine.SetReaders), and its credentials are
// accepted from this machine only. Requests share a number of slots by purpose: readers and reads on
// behalf of people never take those of the owner's inserts. A client that does not read its response, or
// goes away, loses its query and the slot.
//
// What differs from a server: no users by SQL, no HTTP sessions, KILL QUERY only by one query_id and for a
// reader's own queries, INTO OUTFILE and FROM INFILE are refused, formats that are one document (JSON, Parquet,
// Pretty) are made in memory before they are sent, a DateTime column of a result has lost its time zone, and
// columns of JSON, Dynamic, Variant and aggregate states cannot be sent as Native.
package engine
