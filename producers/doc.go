// Package producers is how an application publishes audit events.
//
// A [Publisher] collects the events of all its callers into columnar messages, one at a time for each
// organization and trail, and publishes those to JetStream. When [Publisher.Publish] returns nil, the
// event is on the broker's disk. However often a message has to be sent until that is so, it is stored
// once: it carries an id made of its content.
//
// The package owns what happens up to the broker's acknowledgement, and never reads a stream or
// touches ClickHouse.
package producers
