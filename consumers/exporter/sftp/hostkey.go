package sftp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// HostKeyError tells of a server whose key is not one that was accepted. It shows what a person
// needs to accept it, after having compared it with the server's own.
type HostKeyError struct {
	// Fingerprint (SHA256:…) and KnownHosts (a line) are of the key the server showed. Either may be
	// added to Config.HostKeys.
	Fingerprint string
	KnownHosts  string
	// Type is the kind of key, ssh-ed25519 for instance.
	Type string
	// Want are the fingerprints that were accepted before. Empty: none was, for this host.
	Want []string
	// Revoked tells that the key is marked as revoked.
	Revoked bool
}

func (e *HostKeyError) Error() string {
	switch {
	case e.Revoked:
		return fmt.Sprintf("the server showed the revoked %s key %s", e.Type, e.Fingerprint)
	case len(e.Want) == 0:
		return fmt.Sprintf("the server showed the %s key %s, which nobody has accepted yet", e.Type, e.Fingerprint)
	default:
		return fmt.Sprintf("the server showed the %s key %s instead of %s; SOMEBODY MAY BE IN BETWEEN, nothing was sent",
			e.Type, e.Fingerprint, strings.Join(e.Want, ", "))
	}
}

func (e *HostKeyError) class() error {
	if len(e.Want) == 0 && !e.Revoked {
		return ErrHostKeyUnknown
	}
	return ErrHostKeyChanged
}

func (e *HostKeyError) remedy() string {
	if errors.Is(e.class(), ErrHostKeyUnknown) {
		return fmt.Sprintf("compare it with the server's (ssh-keygen -lf), then add %s to host_keys", e.Fingerprint)
	}
	return "ask the server's administrator whether its key was changed, and only then replace it in host_keys"
}

// pins are the keys a person accepted.
type pins struct {
	fingerprints []string
	keys         []ssh.PublicKey
	hosts        ssh.HostKeyCallback // known_hosts lines; nil: there are none
}

func parsePins(lines []string) (*pins, error) {
	p := &pins{}
	var known []string
	for _, line := range lines {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "SHA256:"):
			fingerprint := strings.TrimRight(line, "=")
			if len(fingerprint) != len("SHA256:")+43 {
				return nil, errors.New("a SHA256 fingerprint has 43 characters after the colon; copy it whole")
			}
			p.fingerprints = append(p.fingerprints, fingerprint)
		case isPublicKey(line):
			key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
			if err != nil {
				return nil, errors.New("the public key is damaged; copy the line whole")
			}
			p.keys = append(p.keys, key)
		default:
			if _, _, _, _, _, err := ssh.ParseKnownHosts([]byte(line)); err != nil {
				return nil, errors.New("it is neither a fingerprint (SHA256:…) nor a public key nor a line of known_hosts")
			}
			known = append(known, line)
		}
	}
	if len(known) == 0 {
		return p, nil
	}
	var err error
	p.hosts, err = knownHosts(known)
	return p, err
}

func isPublicKey(line string) bool {
	first, _, _ := strings.Cut(line, " ")
	return strings.HasPrefix(first, "ssh-") || strings.HasPrefix(first, "ecdsa-")
}

// knownHosts has the library read the lines (it knows hashed names, patterns, authorities and
// revocations), which it does from files only.
func knownHosts(lines []string) (ssh.HostKeyCallback, error) {
	f, err := os.CreateTemp("", "kansa-known-hosts-*")
	if err != nil {
		return nil, fmt.Errorf("keep host keys: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("keep host keys: %w", err)
	}
	callback, err := knownhosts.New(f.Name())
	if err != nil {
		return nil, errors.New("it is no line of known_hosts that can be read")
	}
	return callback, nil
}

// check accepts a key or says why not.
func (p *pins) check(address string, remote net.Addr, key ssh.PublicKey) error {
	fingerprint := ssh.FingerprintSHA256(key)
	refusal := &HostKeyError{
		Fingerprint: fingerprint,
		KnownHosts:  knownhosts.Line([]string{address}, key),
		Type:        key.Type(),
	}
	var revoked *knownhosts.RevokedError
	var unknown *knownhosts.KeyError
	if p.hosts != nil {
		// First, so that a revocation outweighs a fingerprint.
		err := p.hosts(address, remote, key)
		switch {
		case err == nil:
			return nil
		case errors.As(err, &revoked):
			refusal.Revoked = true
			return refusal
		case errors.As(err, &unknown):
			for _, want := range unknown.Want {
				refusal.Want = append(refusal.Want, ssh.FingerprintSHA256(want.Key))
			}
		default:
			return fmt.Errorf("check host key: %w", err)
		}
	}
	if slices.Contains(p.fingerprints, fingerprint) {
		return nil
	}
	refusal.Want = append(refusal.Want, p.fingerprints...)
	for _, want := range p.keys {
		if ssh.FingerprintSHA256(want) == fingerprint {
			return nil
		}
		refusal.Want = append(refusal.Want, ssh.FingerprintSHA256(want))
	}
	return refusal
}

// typesOf gives the algorithms by which a server shows keys of one type. A fingerprint does not tell
// of which type its key is, and a server shows only one key a connection: the one of the first
// algorithm both sides have. So a refused key is not the last word until the server was asked for its
// others.
func typesOf(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	return []string{keyType}
}
