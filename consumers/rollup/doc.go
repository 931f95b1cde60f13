// Package rollup turns closed hours into partitions: one .csv.gz and one manifest for each organization
// and trail, written once.
//
// An hour is closed when every message that the broker stored before its end has been acknowledged by
// the writer. Hours are taken in order, none is left out, and one without events gets its manifest too,
// for every organization and trail that was ever seen. A tick of the broker only says that it is time
// to look; which hours are due is kept in a key-value bucket, so missed ticks and repeated ones do no harm.
//
// A manifest is sealed on top of the one of the hour before, so that those of an organization and trail
// form one chain, whoever makes them.
//
// The package owns the partition store's contents, and never changes a row or a stored partition. It holds
// no key.
package rollup
