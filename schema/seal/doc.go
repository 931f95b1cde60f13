// Package seal makes and checks the statements by which a stranger can tell that exported events are
// the recorded ones, all of them, unchanged.
//
// Rows reads a partition's CSV once and says what is in it: a count, an order-free digest, hashes, and
// the root of an RFC 6962 Merkle tree over the rows. A Manifest states that of one organization, trail
// and hour, and names the manifest before it, so that manifests form a chain. Its one form in bytes is
// signed as a C2SP note. A Ring holds the keys that sealed a chain, one following another by rotations.
// A Proof shows that one row is in a partition without the others.
//
// SPEC.md says all of it exactly enough to write a verifier in another language; testdata has vectors.
//
// The package is pure: it never touches a disk, a network, a database or a clock. Keys are handed to it.
package seal
