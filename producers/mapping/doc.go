// Package mapping turns records of other systems into audit events, as a YAML file says: where records are in an
// input, and for each field of an event where its value comes from and how it is changed. Mappings for common
// systems are built in. deploy/MAPPINGS.md describes the language.
//
// An input passes openText (bytes to UTF-8), reader (text to records), Mapping.open (a record as paths see it) and
// Mapping.apply (rules to an event).
//
// It publishes nothing, and never guesses: what a record does not say is refused or unknown.
package mapping
