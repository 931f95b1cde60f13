package sftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// Offers are the names of the algorithms that a server has, in its order.
type Offers struct {
	KeyExchanges      []string `json:"key_exchanges"`
	HostKeyAlgorithms []string `json:"host_key_algorithms"`
	Ciphers           []string `json:"ciphers"`
	MACs              []string `json:"macs"`
}

// mostGreeting bounds what is kept of a server that never comes to the point.
const mostGreeting = 64 << 10

// greeting listens to what a server says in the clear: its version, and then what it offers. The library
// that speaks with it tells neither when that is not enough to agree.
type greeting struct {
	mu        sync.Mutex
	done      bool
	buf       []byte
	version   string
	versionAt time.Time
	offers    *Offers
	offersAt  time.Time
	foreign   bool
}

var errForeign = errors.New("no SSH is spoken there")

// hear takes the next bytes and tells whether they are surely of another protocol.
func (g *greeting) hear(p []byte) (foreign bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.done || len(p) == 0 {
		return g.foreign
	}
	g.buf = append(g.buf, p...)
	if g.version == "" {
		g.findVersion()
	}
	if g.version != "" {
		g.findOffers()
	}
	g.done = g.done || len(g.buf) > mostGreeting
	return g.foreign
}

// findVersion looks for the line that begins with SSH-. Others may come before it.
func (g *greeting) findVersion() {
	rest := g.buf
	for {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		if !whole {
			break
		}
		if bytes.HasPrefix(line, []byte("SSH-")) {
			g.version, g.versionAt = string(bytes.TrimRight(line, "\r")), time.Now()
			g.buf = slices.Clone(after)
			return
		}
		rest = after
	}
	if foreign, sure := speaker(g.buf); sure && foreign {
		g.foreign, g.done = true, true
	}
}

// The packets of SSH that come in the clear.
const (
	msgIgnore = 2
	msgDebug  = 4
	msgOffers = 20
)

// findOffers reads the packet in which a server lists its algorithms (RFC 4253, section 7.1).
func (g *greeting) findOffers() {
	for !g.done && len(g.buf) >= 6 {
		length := binary.BigEndian.Uint32(g.buf)
		if length > mostGreeting {
			g.done = true
			return
		}
		if len(g.buf) < 4+int(length) {
			return
		}
		packet := g.buf[4 : 4+length]
		g.buf = g.buf[4+length:]
		if len(packet) < 2 || int(packet[0]) >= len(packet) {
			g.done = true
			return
		}
		switch payload := packet[1 : len(packet)-int(packet[0])]; {
		case len(payload) > 0 && payload[0] == msgOffers:
			g.offers, g.offersAt = parseOffers(payload), time.Now()
			g.done = true
		case len(payload) > 0 && (payload[0] == msgIgnore || payload[0] == msgDebug):
		default:
			g.done = true
		}
	}
}

func parseOffers(payload []byte) *Offers {
	const cookie = 16
	if len(payload) < 1+cookie {
		return nil
	}
	payload = payload[1+cookie:]
	var lists [6][]string // key exchange, host key, cipher there and back, MAC there and back
	for i := range lists {
		if len(payload) < 4 || uint64(len(payload)) < 4+uint64(binary.BigEndian.Uint32(payload)) {
			return nil
		}
		n := binary.BigEndian.Uint32(payload)
		for name := range strings.SplitSeq(string(payload[4:4+n]), ",") {
			// Some names are no algorithms, but announce extensions of the protocol.
			if name != "" && !strings.HasPrefix(name, "kex-strict-") && !strings.HasPrefix(name, "ext-info-") {
				lists[i] = append(lists[i], name)
			}
		}
		payload = payload[4+n:]
	}
	return &Offers{KeyExchanges: lists[0], HostKeyAlgorithms: lists[1], Ciphers: lists[2], MACs: lists[4]}
}

// speaker tells whether what was said is surely of another protocol, and whether that is known already.
func speaker(said []byte) (foreign, sure bool) {
	line, _, whole := strings.Cut(string(said), "\n")
	for _, prefix := range []string{"HTTP/", "220", "554 ", "421 ", "* OK", "+OK"} {
		if strings.HasPrefix(line, prefix) {
			return true, whole
		}
	}
	tls := len(said) >= 2 && said[0] == 0x15 && said[1] == 3
	return tls, tls
}

// state is what was heard so far.
func (g *greeting) state() (version string, offers *Offers, said []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.version == "" {
		said = g.buf
	}
	return g.version, g.offers, said
}
