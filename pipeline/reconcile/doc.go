// Package reconcile compares the table with the sealed hours for as long as the system runs, and restores the table from
// partitions, which takes neither the stream nor the ledger.
//
// It owns what it found: which sealed hours the table does not have as they were sealed, and which events differ. It changes the
// table only when somebody asks for it, and never a partition, a manifest or the stream.
package reconcile
