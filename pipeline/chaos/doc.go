// Package chaos breaks a whole pipeline of real processes, again and again, and holds what is left against
// what was promised (ARCHITECTURE.md, "What dies"). It is all tests: make chaos runs TestChaos.
//
// A run is a number of rounds, drawn from a seed. In each, events are published while one to three faults
// happen at drawn points: processes are killed or stopped, connections are cut, slowed, or lose answers, disks
// are full or fail to sync. Then everything heals, and after a bounded wait every acknowledged event has to be
// in the table once, in a partition once and in an archive once, and everything that is signed has to verify.
//
// Rounds come in generations, which begin with empty directories and depend on nothing but the seed and their
// number; so a failure is repeated by running its generation alone. What is drawn is the same each time; how
// the processes interleave is not.
//
// The package owns the processes, proxies, mounts and directories that it makes, and ends them. It never
// looks into a running process, never knows a part's code beyond its configuration and the forms of what it
// stores, and never excuses a difference.
package chaos
