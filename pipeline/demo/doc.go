// Package demo runs the main job once, with everything real: the broker, the engine, an SSH server and a
// mail server inside the process; and counts what came out at the other end.
//
// It owns the story and the counting, and nothing of the pipeline itself.
package demo
