package engine

import (
	"net/http"
	"sync/atomic"
	"time"
)

const (
	// readPatience is how long a client may take for a piece of the response before its query is
	// given up: a client that does not read holds a slot for no longer. ownerPatience is for the
	// owner's statements that are not on behalf of people; what they feed may stall for a while.
	readPatience  = 30 * time.Second
	ownerPatience = 5 * time.Minute
	// lastPatience is for a client whose query was ended.
	lastPatience = time.Second
	// patientBytes is the piece that has to be taken within that time.
	patientBytes = 64 << 10
)

// patientWriter gives every piece of a response a write deadline.
type patientWriter struct {
	http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration
	hurried  atomic.Bool
}

func newPatientWriter(w http.ResponseWriter) *patientWriter {
	p := &patientWriter{ResponseWriter: w, control: http.NewResponseController(w), patience: readPatience}
	p.extend()
	return p
}

// Unwrap is for http.ResponseController.
func (p *patientWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// extend begins the time for a piece. A writer without deadlines is one of a test.
func (p *patientWriter) extend() {
	_ = p.control.SetWriteDeadline(time.Now().Add(p.patience))
	if p.hurried.Load() {
		p.hurry()
	}
}

// hurry gives the write that is under way, and each later one, a short time: enough for the reason
// why a query was ended, if the client reads.
func (p *patientWriter) hurry() {
	p.hurried.Store(true)
	_ = p.control.SetWriteDeadline(time.Now().Add(lastPatience))
}

func (p *patientWriter) Write(data []byte) (n int, err error) {
	for {
		piece := data[n:min(len(data), n+patientBytes)]
		p.extend()
		m, err := p.ResponseWriter.Write(piece)
		if n += m; err != nil || n == len(data) {
			return n, err
		}
	}
}
