package schema

import _ "embed"

// JSONSchema is the JSON Schema (2020-12) of an event, for those who publish from other languages and
// want to check before they do. It says all that JSON Schema can say of the rules that [Event.Validate]
// applies: not bytes but characters, no clock, no sum.
//
//go:embed event.schema.json
var JSONSchema []byte
