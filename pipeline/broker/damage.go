package broker

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A record of a stream's file that does not have its checksum any more can't be read, and leaves a gap in the
// numbers, by which whoever reads on finds it. But if the server was killed, and the record lies in the newest
// block, it cuts the block off there as it starts, with everything after it, tells nobody, and gives the numbers
// to others. Only the file's length shows it. A record that was being written when it was killed goes the same
// way, which is no loss.

// block is a file of AUDIT as it was found.
type block struct {
	path string
	size int64
}

// newestBlock looks before the server does.
func newestBlock(dir string) (newest block) {
	dir = filepath.Join(dir, "jetstream", "$G", "streams", StreamAudit, "msgs")
	entries, _ := os.ReadDir(dir) // there may be no stream yet
	last := -1
	for _, e := range entries {
		number, isBlock := strings.CutSuffix(e.Name(), ".blk")
		n, err := strconv.Atoi(number)
		if !isBlock || err != nil || n <= last {
			continue
		}
		if info, err := e.Info(); err == nil {
			last, newest = n, block{filepath.Join(dir, e.Name()), info.Size()}
		}
	}
	return newest
}

// cutOff returns how many bytes the file has lost since.
func (b block) cutOff() int64 {
	info, err := os.Stat(b.path)
	if err != nil {
		return 0 // its messages were too old, or there was none
	}
	return max(0, b.size-info.Size())
}

// CutOff returns how many bytes of the stream of events the server dropped as it started, because they are damaged.
func (s *Server) CutOff() int64 { return s.cutOff.Load() }
