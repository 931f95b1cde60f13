// Package gateway is the HTTP way in: POST /api/v1/events, in front of a [producers.Publisher].
//
// An answer of 202 means that every event of the request is on the broker's disk. What was not taken is told
// event by event, with the reason and what would be right.
//
// The package owns what happens between a request and the publisher: bodies, their encodings and limits, and
// answers. It listens nowhere, keeps nothing on disk, and knows no login: see [Access].
package gateway
