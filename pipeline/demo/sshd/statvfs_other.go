//go:build !linux

package sshd

import "github.com/pkg/sftp"

// StatVFS is not done here; clients take that for "unknown".
func (f *files) StatVFS(*sftp.Request) (*sftp.StatVFS, error) {
	return nil, sftp.ErrSSHFxOpUnsupported
}
