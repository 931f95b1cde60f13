// Package writer moves events from the AUDIT stream into ClickHouse, each exactly once.
//
// Messages are fetched, decoded, gathered into inserts and inserted, all at the same time; a message is
// acknowledged when ClickHouse has all its events and the dead letters have the rest. Exactly once is
// had by four rules, each of which holds alone in the case it is made for:
//
//   - A message that may have been delivered before (it says so, or it was in the stream when the writer
//     started or reconnected) is looked up by its sequence, and left out if ClickHouse has it.
//   - An insert goes to one table partition as one block, so all of it is there or nothing.
//   - A message is inserted only while its lease lasts: an insert that begins too late to end before the
//     broker hands the message to another writer does not begin.
//   - An insert has a token made of its messages, so that repeating it is harmless.
//
// What the broker stored while its trail was switched off is left out. Before each insert the broker is asked for the
// switches, so that every writer comes to the same result.
//
// The package owns the path between the two, and neither: the stream and the table are handed to it.
package writer
