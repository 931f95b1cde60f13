// Package pipeline puts Kansa together and runs it: the broker and the engine, embedded or elsewhere, and
// the roles that were asked for.
//
// It owns who starts when and who stops when, and moves no event itself.
package pipeline
