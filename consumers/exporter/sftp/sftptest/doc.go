// Package sftptest runs the real thing for tests: OpenSSH's sshd on loopback, with a directory, a
// system user who may log in, and ways to break the network and the disk.
//
// It owns every process, mount and directory it makes, and ends them by their own id at the test's
// cleanup. It never touches another sshd, never listens beyond loopback, and is never imported by
// code that is no test.
package sftptest
