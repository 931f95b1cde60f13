package verify

import (
	"testing"

	"github.com/kansa-audit/kansa/schema/seal/sealtest"
)

// BenchmarkVerify is a partition store of eight hours: MB/s of CSV, on all cores and on one.
func BenchmarkVerify(b *testing.B) {
	key := sealtest.NewKey()
	s := sealtest.New(key)
	var size int64
	for h := range 8 {
		p := sealtest.Partition("acme", activity, h)
		size += s.Add(p, s.Events(p, 20_000)).CSVBytes
	}
	for name, parallel := range map[string]int{"all cores": 0, "one core": 1} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if r := verifyStore(b, s, Options{Key: key.Public, Parallel: parallel}); !r.OK {
					b.Fatal(r.Faults)
				}
			}
		})
	}
}
