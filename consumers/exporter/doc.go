// Package exporter delivers archives of partitions: to SFTP servers, and as links by mail.
//
// A request on the EXPORTS stream, a person's or a schedule's, names an organization, its trails, a
// range of hours and a destination. When the range is rolled up, its partitions are laid out as a ZIP
// file by copying and delivered; the state of each export is kept in a key-value bucket, where people
// see it. A request carries its own id and may be handled any number of times: what is done is done.
//
// The package owns the states of exports and the links, and never changes a partition.
package exporter
