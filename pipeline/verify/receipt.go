package verify

import (
	"fmt"

	"github.com/kansa-audit/kansa/schema/seal"
)

// verifyReceipt tells whether a receipt was signed by a trusted key. That the file is still on the server is not for
// a receipt to say.
func verifyReceipt(data []byte, o Options, r *Report) {
	fail := func(err error) { r.Faults = append(r.Faults, &Fault{File: r.Path, Problem: err.Error(), err: err}) }
	var rotations [][]byte
	var err error
	if o.Rotations != "" {
		rotations, err = goOn(nil, o)
	}
	var ring *seal.Ring
	if err == nil {
		ring, err = seal.NewRing(o.Key, rotations...)
	}
	if err != nil {
		fail(fmt.Errorf("%w: %w", ErrKeys, err))
		return
	}
	r.Keys = ring.Keys()
	if r.Receipt, err = ring.OpenReceipt(data); err != nil {
		fail(err)
	}
}
