// Package broker provides NATS JetStream: embedded or by URL, with the streams, consumers, key-value
// buckets and schedules that Kansa needs, set up so that its guarantees hold, or refused.
//
// It owns their names and settings, and never reads or writes an event.
package broker
