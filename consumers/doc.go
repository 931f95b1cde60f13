// Package consumers is what the writer, the rollup and the exporter share: how work is taken from a
// stream, repeated, given up to the dead letters, and acknowledged.
//
// The contract of every consumer: it may be given the same message again at any time, in this process or
// another, and ends up with the same result. It acknowledges a message when, and only when, all that
// the message asks for is durable elsewhere.
//
// It owns no stream and no connection, and never imports producers or pipeline.
package consumers
