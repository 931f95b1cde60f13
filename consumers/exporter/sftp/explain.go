package sftp

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"

	"github.com/kansa-audit/kansa/consumers/exporter/reach"
)

// reason says in plain words what an error means, and keeps it for errors.Is.
type reason struct {
	text string
	err  error
}

func (r *reason) Error() string { return r.text }
func (r *reason) Unwrap() error { return r.err }

// explainNetwork says what people can do about a connection that did not come about, or was lost.
func explainNetwork(address string, err error) (remedy string, cause error) {
	host, port, _ := net.SplitHostPort(address)
	var dns *net.DNSError
	switch {
	case errors.Is(err, reach.ErrRefused):
		text := err.Error()
		return "choose another server", &reason{text[strings.Index(text, reach.ErrRefused.Error()):], err} // without the address, which may be an internal one
	case errors.As(err, &dns) && dns.IsNotFound:
		return "check how it is written", &reason{fmt.Sprintf("there is no host %q", host), err}
	case errors.As(err, &dns):
		return "check this machine's name server, or give an address", &reason{fmt.Sprintf("the name server can't say where %q is", host), err}
	case errors.Is(err, syscall.ECONNREFUSED):
		return "check the port, which is usually 22, and whether the server runs", &reason{fmt.Sprintf("nothing listens on port %s there", port), err}
	case errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH):
		return "check the address, the network and the firewall", &reason{fmt.Sprintf("no way leads to %s", host), err}
	}
	return "check the host, the port and the network", err
}

// explainSilence tells what is wrong when a server was reached, but did not introduce itself. err may be nil
// if it is the time that is over.
func (w where) explainSilence(heard *greeting, timeout bool, err error) error {
	version, _, said := heard.state()
	if version != "" {
		return nil
	}
	_, port, _ := net.SplitHostPort(w.address)
	if len(said) > 0 {
		// Never what it said, nor what it is: a person who may name any server would learn what runs in the operator's network.
		class := ErrConnection // OpenSSH sends a line like this while it has too many connections
		if foreign, _ := speaker(said); foreign {
			class = ErrNotSSH
		}
		return w.fail(class, "connect", "", "give the port of the SSH server, which is usually 22; if it is right, ask the server's administrator",
			&reason{fmt.Sprintf("the server on port %s does not speak SSH", port), err})
	}
	if timeout {
		return w.fail(ErrTimeout, "connect", "", "check that the port is that of an SSH server, and the firewall",
			&reason{"something took the connection, and says nothing", err})
	}
	return w.fail(ErrConnection, "connect", "", "check the port, and whether the server lets this machine in",
		&reason{"the server closed the connection before it said anything", err})
}

// fieldOf is where the algorithms of a kind are chosen, and which those are.
func fieldOf(what string) (field string, known []Algorithm) {
	all := KnownAlgorithms()
	switch {
	case what == "key exchange":
		return "key_exchanges", all.KeyExchanges
	case what == "host key":
		return "host_key_algorithms", all.HostKeyAlgorithms
	case strings.HasSuffix(what, "cipher"):
		return "ciphers", all.Ciphers
	case strings.HasSuffix(what, "MAC"):
		return "macs", all.MACs
	}
	return "", nil
}

// explainAlgorithms says what to choose if both sides have nothing in common.
func explainAlgorithms(err *ssh.AlgorithmNegotiationError) (remedy string, cause error) {
	field, known := fieldOf(err.What)
	offered := slices.DeleteFunc(slices.Clone(err.RequestedAlgorithms), func(name string) bool {
		return strings.HasPrefix(name, "kex-strict-") || strings.HasPrefix(name, "ext-info-")
	})
	var modern, weak []string
	for _, a := range known {
		switch {
		case !slices.Contains(offered, a.Name):
		case a.Legacy:
			weak = append(weak, a.Name)
		default:
			modern = append(modern, a.Name)
		}
	}
	cause = &reason{fmt.Sprintf("for the %s the server has only %s", err.What, strings.Join(offered, ", ")), err}
	switch {
	case len(modern) > 0:
		return fmt.Sprintf("name %s in %s", strings.Join(modern, " or "), field), cause
	case len(weak) > 0:
		return fmt.Sprintf("that is weak: have the server brought up to date, or name %s in %s", strings.Join(weak, " or "), field), cause
	}
	return "kansa has none of these: have the server brought up to date", cause
}

// signIn is what came of the attempts to sign in.
type signIn struct {
	have *credentials
	// takes are the methods that the server named.
	takes   []string
	partial []string
}

// follow is an ssh.ClientAuthCallback that chooses nothing.
func (s *signIn) follow(at *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
	for _, method := range at.AllowedMethods {
		if !slices.Contains(s.takes, method) {
			s.takes = append(s.takes, method)
		}
	}
	s.partial = at.PartialSuccessMethods
	return nil, nil
}

func (s *signIn) takesKey() bool { return slices.Contains(s.takes, "publickey") }
func (s *signIn) takesPassword() bool {
	return slices.Contains(s.takes, "password") || slices.Contains(s.takes, "keyboard-interactive")
}

// explain says why a server let nobody in.
func (s *signIn) explain(err error) (remedy string, cause error) {
	say := func(text string) error { return &reason{text, err} }
	switch {
	case s.have.code != "":
		return "give a private key for which the server asks for no code, or have it exempt this user",
			say(fmt.Sprintf("the server asks for %q, which only a person can answer", s.have.code))
	case len(s.partial) > 0:
		return "give both a private key and a password", say("the server wants more than one proof")
	case len(s.takes) == 0:
		// It hung up, or never said what it takes.
	case s.have.key != nil && !s.have.password && !s.takesKey() && s.takesPassword():
		return "give the password in password or password_file", say("the server takes only a password, and a private key was given")
	case s.have.key == nil && s.have.password && s.takesKey() && !s.takesPassword():
		return "give the key in private_key or private_key_file, and its public half to the server", say("the server takes only a private key, and a password was given")
	case !s.takesKey() && !s.takesPassword():
		return "have it let this user in by a key", say("the server takes neither a password nor a private key, but " + strings.Join(s.takes, ", "))
	}
	key := s.have.key != nil && (len(s.takes) == 0 || s.takesKey())
	password := s.have.password && (len(s.takes) == 0 || s.takesPassword())
	if key {
		fingerprint := s.have.key.Type() + " " + ssh.FingerprintSHA256(s.have.key)
		remedy = "check the user, and that the public half of this very key is among the user's authorized keys"
		if s.have.key.Type() == ssh.KeyAlgoRSA {
			remedy += "; an old server may need ssh-rsa in host_key_algorithms"
		}
		if password {
			return remedy + ", or check the password", say(fmt.Sprintf("the server refused the private key %s and the password", fingerprint))
		}
		return remedy, say("the server refused the private key " + fingerprint)
	}
	return "check the user and the password", say("the server refused the password")
}

// bytesOf writes a size for people.
func bytesOf(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return strconv.FormatInt(n, 10) + " bytes"
	}
	f, i := float64(n)/1000, 0
	for ; f >= 999.95 && i < len(units)-1; i++ {
		f /= 1000
	}
	return fmt.Sprintf("%.1f %cB", f, units[i])
}
