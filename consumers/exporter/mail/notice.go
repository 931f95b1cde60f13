package mail

import (
	"fmt"
	"strings"
	"time"
)

// Notice says that deliveries to a destination fail, or that they work again (requirement B3).
type Notice struct {
	Organization string
	Destination  string
	Healed       bool
	// Since is when they began to fail; Attempts counts those in a row; Error is that of the last.
	Since    time.Time
	Attempts uint64
	Error    string
	// File is the archive that waits, or that has arrived.
	File string
	At   time.Time
}

// Message renders the mail. It is text alone: nothing in it is to be clicked.
func (n Notice) Message(to string) Message {
	var b strings.Builder
	line := func(format string, v ...any) { fmt.Fprintf(&b, format+"\r\n", v...) }
	m := Message{To: to}
	if n.Healed {
		m.Subject = fmt.Sprintf("Audit archives reach %s of %s again", n.Destination, n.Organization)
		line("Deliveries to the destination %s of %s work again since %s.", n.Destination, n.Organization, moment(n.At))
		line("")
		line("  Delivered     %s", n.File)
		line("")
		line("Archives that were due meanwhile follow by themselves, in order; none is left out.")
	} else {
		m.Subject = fmt.Sprintf("Audit archives do not reach %s of %s", n.Destination, n.Organization)
		line("Deliveries to the destination %s of %s have failed since %s.", n.Destination, n.Organization, moment(n.Since))
		line("")
		line("  Attempts      %d", n.Attempts)
		if n.File != "" {
			line("  Waiting       %s", n.File)
		}
		line("  Last error    %s", n.Error)
		line("")
		line("Nothing is lost: the archives are kept and are delivered, in order, when it works again. You get another mail then.")
		line("")
		line("To see what is wrong, on a machine that reaches the system:")
		line("")
		line("  kansa destination test %s/%s", n.Organization, n.Destination)
	}
	m.Text = b.String()
	return m
}
