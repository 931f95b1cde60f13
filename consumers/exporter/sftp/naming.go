package sftp

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/pkg/sftp"
)

// Naming is how a file gets its name on the server. Whoever reads a directory there must not take a file that is not
// complete, so it is written under another name and renamed, unless the server cannot do that.
type Naming string

// The ways to name a file.
const (
	// NamingHidden writes .NAME.RANDOM.part and renames it. It is the default.
	NamingHidden Naming = "hidden"
	// NamingSuffix writes NAME.RANDOM.part and renames it, for servers that refuse names with a dot in front.
	NamingSuffix Naming = "suffix"
	// NamingFolder writes into the folder kansa-tmp of the directory, with the ending of the final name, and renames it
	// out of there, for servers that refuse other endings or take each file that appears in the directory.
	NamingFolder Naming = "folder"
	// NamingNone writes the file under its final name, for servers without renames, and those that take a file as soon as
	// it is closed. Half a file can be seen meanwhile, and after a cut until the next attempt.
	NamingNone Naming = "none"
)

// namings are all of them, the safest first.
var namings = []Naming{NamingHidden, NamingSuffix, NamingFolder, NamingNone}

// temporaryFolder is that of NamingFolder.
const temporaryFolder = "kansa-tmp"

// temporary is where a file is written before it gets its name: the directory, and what its name there begins and ends
// with, around the random part.
func (n Naming) temporary(dir, name string) (folder, prefix, suffix string) {
	switch n {
	case NamingSuffix:
		return dir, name + ".", partSuffix
	case NamingFolder:
		return join(dir, temporaryFolder), "", "-" + name
	default:
		return dir, "." + name + ".", partSuffix
	}
}

// isTemporary reports whether a name in the folder is one of earlier uploads of the file.
func isTemporary(name, prefix, suffix string) bool {
	random, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return false
	}
	random, ok = strings.CutSuffix(random, suffix)
	return ok && len(random) == partRandom && strings.Trim(random, "0123456789abcdef") == ""
}

// refusedRequest is a request that the server answered with a status, and what it was for: people who run a server look
// for the request in its rules, not for the delivery.
type refusedRequest struct {
	request, path string
	err           error
}

func (r *refusedRequest) Error() string {
	return "the server refused to " + r.request + " " + strconv.Quote(r.path) + ": " + r.err.Error()
}

func (r *refusedRequest) Unwrap() error { return r.err }

// refused names a request whose error is an answer of the server's. Other errors end a session.
func refused(request, path string, err error) error {
	if !answered(err) {
		return err
	}
	return &refusedRequest{request, path, err}
}

// answered reports whether an error is an answer of the server's.
func answered(err error) bool {
	var status *sftp.StatusError
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.As(err, &status)
}

// unsupported reports whether the server says that it does not know a request, or a flag of it.
func unsupported(err error) bool {
	var status *sftp.StatusError
	return errors.As(err, &status) && status.FxCode() == sftp.ErrSSHFxOpUnsupported
}

// create opens a new file. Some servers do not know the flag that has an existing file refused; a random name needs it
// as little as one that was just looked up.
func (u *upload) create(path string, replace bool) (*sftp.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if replace {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := u.sftp.OpenFile(path, flags)
	if !replace && unsupported(err) {
		f, err = u.sftp.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	}
	return f, refused("create", path, err)
}
