// Package schema says what an audit event is: its Go type, its fields and their limits, the one
// validation that every way in applies, the JSON Schema, and the names (subjects, headers,
// partition paths) under which events and their partitions travel.
//
// It owns the rules and nothing that moves: it never talks to a broker, a database or a disk.
package schema
