package keys

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// readKey reads a private key. The error is fs.ErrNotExist if there is none.
func readKey(path string) (*key, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the sealing key: %w", err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o: chmod 600 it, and if others may have read it, rotate it (kansa key rotate)", ErrMode, path, info.Mode().Perm())
	}
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the sealing key: %w", err)
	}
	k, err := parseKey(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w: put it back from a backup", ErrDamaged, path, err)
	}
	return k, nil
}

// algEd25519 marks Ed25519 in the keys of notes.
const algEd25519 = 1

func parseKey(file []byte) (*key, error) {
	text, ok := strings.CutSuffix(string(file), "\n")
	if !ok {
		return nil, errors.New("it does not end in a line break")
	}
	signer, err := note.NewSigner(text)
	if err != nil {
		return nil, err
	}
	// PRIVATE+KEY+<name>+<hash>+<base64 of algorithm and seed>; NewSigner has checked it.
	parts := strings.SplitN(text, "+", 5)
	seed, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(seed) != 1+ed25519.SeedSize || seed[0] != algEd25519 {
		return nil, errors.New("it is no Ed25519 key")
	}
	public, _ := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey)
	verifier, err := note.NewEd25519VerifierKey(signer.Name(), public)
	if err != nil {
		return nil, err
	}
	return &key{file: file, public: verifier, signer: signer}, nil
}
