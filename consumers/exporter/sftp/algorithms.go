package sftp

import (
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Algorithm is one name that may stand in a list of [Config].
type Algorithm struct {
	Name string `json:"name"`
	// Default tells that it is used where the list is empty.
	Default bool `json:"default"`
	// Legacy tells that it is weak. It works, for servers that have nothing better, where it is named.
	Legacy bool `json:"legacy"`
}

// Algorithms are all the names there are, by field, best first.
type Algorithms struct {
	KeyExchanges      []Algorithm `json:"key_exchanges"`
	Ciphers           []Algorithm `json:"ciphers"`
	MACs              []Algorithm `json:"macs"`
	HostKeyAlgorithms []Algorithm `json:"host_key_algorithms"`
}

// The defaults are spelled out, because those of x/crypto still have SHA-1 and ssh-rsa among them.
var (
	defaultKeyExchanges = []string{
		ssh.KeyExchangeMLKEM768X25519,
		ssh.KeyExchangeCurve25519,
		ssh.KeyExchangeECDHP256,
		ssh.KeyExchangeECDHP384,
		ssh.KeyExchangeECDHP521,
		ssh.KeyExchangeDH16SHA512,
		ssh.KeyExchangeDH14SHA256,
		ssh.KeyExchangeDHGEXSHA256,
	}
	// AES-128-GCM goes first: it is the fastest by far where the processor has AES.
	defaultCiphers = []string{
		ssh.CipherAES128GCM,
		ssh.CipherAES256GCM,
		ssh.CipherChaCha20Poly1305,
		ssh.CipherAES128CTR,
		ssh.CipherAES192CTR,
		ssh.CipherAES256CTR,
	}
	defaultMACs = []string{
		ssh.HMACSHA256ETM,
		ssh.HMACSHA512ETM,
		ssh.HMACSHA256,
		ssh.HMACSHA512,
	}
	defaultHostKeys = []string{
		ssh.KeyAlgoED25519,
		ssh.KeyAlgoECDSA256,
		ssh.KeyAlgoECDSA384,
		ssh.KeyAlgoECDSA521,
		ssh.KeyAlgoRSASHA512,
		ssh.KeyAlgoRSASHA256,
	}
	// Legacy names may be chosen, and only these: a name that is in neither list is refused.
	legacyKeyExchanges = ssh.InsecureAlgorithms().KeyExchanges
	legacyCiphers      = ssh.InsecureAlgorithms().Ciphers
	legacyMACs         = append([]string{ssh.HMACSHA1}, ssh.InsecureAlgorithms().MACs...)
	legacyHostKeys     = []string{ssh.KeyAlgoRSA}
)

// KnownAlgorithms lists what may be chosen, for forms and documentation.
func KnownAlgorithms() Algorithms {
	return Algorithms{
		KeyExchanges:      listed(defaultKeyExchanges, legacyKeyExchanges),
		Ciphers:           listed(defaultCiphers, legacyCiphers),
		MACs:              listed(defaultMACs, legacyMACs),
		HostKeyAlgorithms: listed(defaultHostKeys, legacyHostKeys),
	}
}

func listed(modern, legacy []string) []Algorithm {
	out := make([]Algorithm, 0, len(modern)+len(legacy))
	for _, name := range modern {
		out = append(out, Algorithm{Name: name, Default: true})
	}
	for _, name := range legacy {
		out = append(out, Algorithm{Name: name, Legacy: true})
	}
	return out
}

func orDefault(chosen, fallback []string) []string {
	if len(chosen) == 0 {
		return slices.Clone(fallback)
	}
	return slices.Clone(chosen)
}

// Legacy tells of the name of any algorithm whether it is weak, one that Kansa does not have among them.
func Legacy(name string) bool {
	switch {
	case name == ssh.KeyAlgoRSA || name == "ssh-dss": // they sign SHA-1
		return true
	case strings.Contains(name, "sha1") || strings.Contains(name, "md5") || strings.Contains(name, "cbc") || strings.HasPrefix(name, "arcfour"):
		return true
	}
	return false
}
