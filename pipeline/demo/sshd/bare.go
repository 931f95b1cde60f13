package sshd

import (
	"encoding/binary"

	"golang.org/x/crypto/ssh"
)

// withoutExtensions replaces the first packet of an SFTP server, its version, by one that offers
// nothing. pkg/sftp has a setting for that, but one for the whole process.
type withoutExtensions struct {
	ssh.Channel
	held []byte
	done bool
}

var plainVersion = []byte{0, 0, 0, 5, 2, 0, 0, 0, 3} // length, SSH_FXP_VERSION, 3

func (w *withoutExtensions) Write(p []byte) (int, error) {
	if w.done {
		return w.Channel.Write(p)
	}
	// The packet may come in several writes. The server writes from one goroutine at a time.
	w.held = append(w.held, p...)
	if len(w.held) < 4 || len(w.held) < 4+int(binary.BigEndian.Uint32(w.held)) {
		return len(p), nil
	}
	w.done = true
	rest := w.held[4+binary.BigEndian.Uint32(w.held):]
	if _, err := w.Channel.Write(append(plainVersion[:len(plainVersion):len(plainVersion)], rest...)); err != nil {
		return 0, err
	}
	return len(p), nil
}
