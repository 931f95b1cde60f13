package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kansa-audit/kansa/producers/mapping"
	"github.com/kansa-audit/kansa/schema"
)

// Config holds the settings of a [Gateway]. The zero value of a field means its default.
type Config struct {
	// Access decides who may publish. Required.
	Access Access
	// Limits are the shares of clients and organizations; default none.
	Limits Limits
	// MaxBody bounds a body, as sent and as decompressed. Default 32 MiB.
	MaxBody int64
	// MaxEvents bounds the events of a request. Default 65,536.
	MaxEvents int
	// Memory bounds what all requests together hold: their bodies, and the events read from them. Default
	// 256 MiB. ClientMemory is the share of one client; default half of it. A request takes up to three times
	// its body.
	Memory, ClientMemory int64
	// MaxRequests bounds the requests that are served at once. Default 1,024.
	MaxRequests int
	// Timeout bounds the reading of a body, and then again the wait for the broker. Default 30 s.
	Timeout time.Duration
	// Window is how long the broker knows a message again: for so long an Idempotency-Key is good. Default 10
	// minutes, that of the streams.
	Window time.Duration
	// Mappings are those that requests and clients can name. Default: the built-in ones.
	Mappings map[string]*mapping.Mapping
	// Logger is told of requests that fail; default none.
	Logger *slog.Logger
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// minBody is the least MaxBody: an event of the largest size fits.
const minBody = 2 * schema.MaxEventBytes

// memoryPerBody is what a request may hold, as a multiple of MaxBody: the body as sent and as decompressed, twice
// while it grows, and the events read from it; and a window of zstd.
const memoryPerBody = 4

func (c Config) withDefaults() (Config, error) {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.MaxBody, 32<<20)
	def(&c.Memory, max(256<<20, 2*memoryPerBody*c.MaxBody))
	def(&c.ClientMemory, max(c.Memory/2, memoryPerBody*c.MaxBody))
	if c.Mappings == nil {
		all, err := mapping.LoadAll("")
		if err != nil {
			return c, err
		}
		c.Mappings = all
	}
	if c.Limits == nil {
		c.Limits = unlimited{}
	}
	if c.MaxEvents == 0 {
		c.MaxEvents = schema.MaxMessageEvents
	}
	if c.MaxRequests == 0 {
		c.MaxRequests = 1024
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Window == 0 {
		c.Window = 10 * time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	var errs []error
	if c.Access == nil {
		errs = append(errs, errors.New("Access is missing: say who may publish"))
	}
	bound := func(name string, v, low, high int64) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("%s is %d: set it from %d to %d", name, v, low, high))
		}
	}
	bound("MaxBody", c.MaxBody, minBody, 1<<30)
	bound("MaxEvents", int64(c.MaxEvents), 1, 1<<20)
	bound("Memory", c.Memory, memoryPerBody*c.MaxBody+largeWindow, 1<<40)
	bound("ClientMemory", c.ClientMemory, memoryPerBody*c.MaxBody, c.Memory)
	bound("MaxRequests", int64(c.MaxRequests), 1, 1<<20)
	return c, errors.Join(errs...)
}
