package api

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate is that of the server, read again when its files change. While they cannot be read, the previous one is shown.
type certificate struct {
	cert, key string
	log       *slog.Logger

	mu     sync.Mutex
	pair   *tls.Certificate
	looked time.Time
	of     [2]time.Time // when the files were changed
}

// lookAgain is how often the files are looked at.
const lookAgain = time.Second

func newCertificate(cert, key string, log *slog.Logger) (*certificate, error) {
	c := &certificate{cert: cert, key: key, log: log}
	return c, c.read()
}

// read needs the lock.
func (c *certificate) read() error {
	var of [2]time.Time
	for i, path := range []string{c.cert, c.key} {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("read api.tls_cert_file and api.tls_key_file: %w", err)
		}
		of[i] = info.ModTime()
	}
	if c.pair != nil && of == c.of {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("read api.tls_cert_file and api.tls_key_file: %w", err)
	}
	c.pair, c.of = &pair, of
	return nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) > lookAgain {
		c.looked = time.Now()
		if err := c.read(); err != nil {
			c.log.Error("failed to reload the certificate: the previous one stays in use", slog.Any("error", err))
		}
	}
	return c.pair, nil
}

func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}
