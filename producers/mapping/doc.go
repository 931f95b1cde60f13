// Package mapping turns foreign logs into audit events by a small file that says, for each field, which
// JSON path it comes from or what constant it is. Mappings for AWS CloudTrail and the Windows event log
// are built in.
//
// It owns the reading of lines and their translation, and publishes nothing.
package mapping
