//go:build linux

package sftptest

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const userName = "kansa-sftp-test"

type account struct {
	name, password string
	uid, gid       int
}

// testUser gives the dedicated user, made once for a machine and then left there. Test processes run
// side by side, so they share the password, in a directory that only root can read, and take turns at
// making it.
func testUser(t testing.TB) account {
	t.Helper()
	cache, err := os.UserCacheDir()
	must(t, err)
	dir := filepath.Join(cache, userName)
	must(t, os.MkdirAll(dir, 0o700))
	must(t, os.Chmod(dir, 0o700))
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer lock.Close()
	must(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX))

	secret := filepath.Join(dir, "password")
	password, err := os.ReadFile(secret)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	u, err := user.Lookup(userName)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		run(t, "useradd", "-M", "-d", "/", "-s", "/usr/sbin/nologin", userName)
		password = nil
		u, err = user.Lookup(userName)
	}
	must(t, err)
	if len(password) == 0 {
		password = []byte(rand.Text())
		cmd := exec.Command("chpasswd")
		cmd.Stdin = strings.NewReader(userName + ":" + string(password) + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("chpasswd: %v\n%s", err, out)
		}
		must(t, os.WriteFile(secret, password, 0o600))
	}
	uid, err := strconv.Atoi(u.Uid)
	must(t, err)
	gid, err := strconv.Atoi(u.Gid)
	must(t, err)
	return account{userName, string(password), uid, gid}
}
