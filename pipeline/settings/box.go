package settings

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kansa-audit/kansa/pipeline/durable"
)

// KeyFile is the name of the operator's key in the data directory, unless the configuration names another file.
const KeyFile = "settings.key"

// What can be wrong with the key that seals secrets.
var (
	ErrKey     = errors.New("the key of the settings can not be used")
	ErrWrong   = errors.New("a secret was sealed with another key")
	sealPrefix = "kansa-secret-1:"
)

// Box seals secrets with XChaCha20-Poly1305. A secret is bound to where it belongs, so that who can write the
// settings but has no key can't move it to a place of his own.
type Box struct{ aead cipher.AEAD }

// OpenBox reads the key in a file, and makes one, readable to its owner alone, where there is no file.
func OpenBox(path string) (*Box, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = makeKey(path); err != nil {
			return nil, fmt.Errorf("make the key of the settings: %w", err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w: make it readable to kansa", ErrKey, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %o, others may read it: chmod 600 it, and change the secrets", ErrKey, path, mode)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != chacha20poly1305.KeySize {
		return nil, fmt.Errorf("%w: %s does not hold 32 bytes in base64: bring back the file from a backup", ErrKey, path)
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &Box{aead}, nil
}

// makeKey makes a key that is whole and on disk.
func makeKey(path string) ([]byte, error) {
	key := make([]byte, chacha20poly1305.KeySize)
	_, _ = rand.Read(key) // never fails
	text := []byte(base64.StdEncoding.EncodeToString(key) + "\n")
	// Of two processes that start at once, one wins, and both have the same key.
	if err := durable.New(path, text, 0o600); errors.Is(err, fs.ErrExist) {
		return os.ReadFile(path)
	} else if err != nil {
		return nil, err
	}
	return text, nil
}

// Seal hides a secret that belongs to a place.
func (b *Box) Seal(place, secret string) string {
	nonce := make([]byte, b.aead.NonceSize(), b.aead.NonceSize()+len(secret)+b.aead.Overhead())
	_, _ = rand.Read(nonce) // never fails
	return sealPrefix + base64.StdEncoding.EncodeToString(b.aead.Seal(nonce, nonce, []byte(secret), []byte(place)))
}

// Open returns a secret of a place, or an error that answers to ErrWrong.
func (b *Box) Open(place, sealed string) (string, error) {
	text, ok := strings.CutPrefix(sealed, sealPrefix)
	data, err := base64.StdEncoding.DecodeString(text)
	n := b.aead.NonceSize()
	if !ok || err != nil || len(data) < n {
		return "", fmt.Errorf("%w, or it is damaged: %s", ErrWrong, place)
	}
	secret, err := b.aead.Open(nil, data[:n], data[n:], []byte(place))
	if err != nil {
		return "", fmt.Errorf("%w, or it is damaged: %s: give every process the same settings.key_file, or give the secret again", ErrWrong, place)
	}
	return string(secret), nil
}
