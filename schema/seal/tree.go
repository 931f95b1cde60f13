package seal

import (
	"bytes"
	"crypto/sha256"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Hash is a SHA-256.
type Hash = [sha256.Size]byte

// tree is an RFC 6962 Merkle tree that grows leaf by leaf and keeps only its right border, in buffers
// that are used again: a leaf costs no allocation.
type tree struct {
	border *compact.Range
	free   [][]byte
	node   [1 + 2*sha256.Size]byte
	path   *path
}

func newTree() *tree {
	t := &tree{}
	t.node[0] = rfc6962.RFC6962NodeHashPrefix
	t.border = (&compact.RangeFactory{Hash: t.join}).NewEmptyRange(0)
	return t
}

// join hashes two nodes into the buffer of the left one: the border has no more use for either.
func (t *tree) join(left, right []byte) []byte {
	copy(t.node[1:], left)
	copy(t.node[1+sha256.Size:], right)
	sum := sha256.Sum256(t.node[:])
	copy(left, sum[:])
	t.free = append(t.free, right)
	return left
}

// add appends a leaf, whose hash it copies.
func (t *tree) add(leaf []byte) error {
	var buf []byte
	if n := len(t.free); n > 0 {
		buf, t.free = t.free[n-1], t.free[:n-1]
	} else {
		buf = make([]byte, sha256.Size)
	}
	copy(buf, leaf)
	if t.path != nil {
		return t.border.Append(buf, t.path.visit)
	}
	return t.border.Append(buf, nil)
}

func (t *tree) size() uint64 { return t.border.End() }

// root is the tree's root; that of an empty tree is the SHA-256 of nothing.
func (t *tree) root() (root Hash, err error) {
	if t.size() == 0 {
		return EmptyRoot, nil
	}
	// In a tree of its own: join overwrites what it hashes.
	nodes := make([][]byte, len(t.border.Hashes()))
	for i, h := range t.border.Hashes() {
		nodes[i] = slices.Clone(h)
	}
	whole, err := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewRange(0, t.size(), nodes)
	if err != nil {
		return root, err
	}
	sum, err := whole.GetRootHash(nil)
	copy(root[:], sum)
	return root, err
}

// EmptyRoot is the root of a tree without leaves.
var EmptyRoot = sha256.Sum256(nil)

// path collects the nodes of the audit path of one leaf while the tree grows.
type path struct {
	nodes proof.Nodes
	found [][]byte // in the order of nodes.IDs
}

// follow starts to collect the path of the leaf that is added next, in a tree that will have size leaves.
func (t *tree) follow(size uint64) error {
	nodes, err := proof.Inclusion(t.size(), size)
	if err != nil {
		return err
	}
	p := &path{nodes: nodes, found: make([][]byte, len(nodes.IDs))}
	for i, id := range compact.RangeNodes(0, t.size(), nil) { // what lies to the left is on the border now
		p.visit(id, t.border.Hashes()[i])
	}
	t.path = p
	return nil
}

func (p *path) visit(id compact.NodeID, hash []byte) {
	if i := slices.Index(p.nodes.IDs, id); i >= 0 {
		p.found[i] = bytes.Clone(hash)
	}
}

// hashes returns the path, from the leaf to the root, once the tree has its size.
func (p *path) hashes() ([]Hash, error) {
	nodes, err := p.nodes.Rehash(p.found, rfc6962.DefaultHasher.HashChildren)
	if err != nil {
		return nil, err
	}
	out := make([]Hash, len(nodes))
	for i, n := range nodes {
		copy(out[i][:], n)
	}
	return out, nil
}
