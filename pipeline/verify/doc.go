// Package verify tells whether exported events are the recorded ones: of an archive, a partition store, one
// partition, or the proof of one row. It needs a verifier key from elsewhere and nothing else: no network,
// no database, no running Kansa.
//
// It reads each file once and in a stream, several at a time; what it keeps are manifests. It owns no
// format: what is right is said by schema/seal and by the layout of consumers/exporter/archive.
package verify
