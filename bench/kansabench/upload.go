package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
)

// upload is one file's way to the server by each client, in seconds.
type upload struct {
	Latency   string   `json:"latency"`
	Bytes     int64    `json:"bytes"`
	Kansa     float64  `json:"kansa_seconds"`
	SFTP      *float64 `json:"sftp_fsync_seconds"` // put -f: syncs at the end, as Kansa does
	SFTPPlain *float64 `json:"sftp_seconds"`       // put
	Rclone    *float64 `json:"rclone_seconds"`
}

// uploads is how often each is repeated; the best of them counts, for a busy machine spoils some.
const uploads = 3

func (b *bench) upload(ctx context.Context) (err error) {
	s, err := b.newStack("upload")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	server, err := startSSHD(ctx, s.dir)
	if err != nil {
		b.result.miss("upload", err)
		return nil
	}
	defer func() { err = errors.Join(err, server.close()) }()
	far, err := newDistance(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(server.port)), 10*time.Millisecond)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, far.close()) }()
	var all []upload
	t := table{title: "Upload by SFTP to OpenSSH on this machine", header: []string{"round trip", "MB", "Kansa, MB/s", "sftp put -f, MB/s", "sftp put, MB/s", "rclone, MB/s"}}
	for _, way := range []struct {
		name string
		port int
		size int64
	}{{"0 ms", server.port, scale(b, int64(1<<30), 192<<20)}, {"20 ms", far.port(), scale(b, int64(1<<30), 64<<20)}} {
		u, err := b.uploadAll(ctx, s.dir, server, way.port, way.size)
		if err != nil {
			return err
		}
		u.Latency = way.name
		all = append(all, u)
		speed := func(seconds *float64) string {
			if seconds == nil {
				return "–"
			}
			return number(float64(u.Bytes) / 1e6 / *seconds)
		}
		t.rows = append(t.rows, []string{way.name, number(float64(u.Bytes) / 1e6), speed(&u.Kansa), speed(u.SFTP), speed(u.SFTPPlain), speed(u.Rclone)})
		b.say("upload, %s: %v", way.name, t.rows[len(t.rows)-1][2:])
		sum := &b.result.Summary
		if u.SFTP != nil {
			ratio := figure(*u.SFTP / u.Kansa)
			if way.name == "0 ms" {
				sum.UploadRatio = ratio
			} else {
				sum.Upload20msRatio = ratio
			}
		}
		if u.Rclone != nil && way.name == "0 ms" {
			sum.UploadRcloneRatio = figure(*u.Rclone / u.Kansa)
		}
	}
	t.notes = []string{"Kansa and put -f sync the file on the server before they are done, and Kansa verifies its size and renames it. The ratios are to put -f."}
	b.result.add("upload", all, t)
	return nil
}

func (b *bench) uploadAll(ctx context.Context, dir string, server *sshd, port int, size int64) (u upload, err error) {
	u.Bytes = size
	source := filepath.Join(dir, "source")
	if err := randomFile(source, size); err != nil {
		return u, err
	}
	name := func(client string, i int) string { return fmt.Sprintf("%s-%d-%d", client, port, i) }
	remove := func(client string, i int) { _ = os.Remove(filepath.Join(server.incoming, name(client, i))) }
	u.Kansa, err = best(func(i int) error {
		defer remove("kansa", i)
		return kansaUpload(ctx, server, port, source, name("kansa", i), size)
	})
	if err != nil {
		return u, err
	}
	for _, c := range []struct {
		client, put string
		to          **float64
	}{{"sftp-f", "put -f", &u.SFTP}, {"sftp", "put", &u.SFTPPlain}} {
		took, err := best(func(i int) error {
			defer remove(c.client, i)
			return server.sftp(ctx, port, fmt.Sprintf("%s %s %s\n", c.put, source, filepath.Join(server.incoming, name(c.client, i))))
		})
		if errors.Is(err, exec.ErrNotFound) {
			b.result.miss("sftp(1)", err)
			break
		}
		if err != nil {
			return u, err
		}
		*c.to = &took
	}
	took, err := best(func(i int) error {
		defer remove("rclone", i)
		return server.rclone(ctx, port, source, filepath.Join(server.incoming, name("rclone", i)))
	})
	if errors.Is(err, exec.ErrNotFound) {
		b.result.miss("rclone", err)
		return u, nil
	}
	if err != nil {
		return u, err
	}
	u.Rclone = &took
	return u, nil
}

func best(do func(i int) error) (seconds float64, err error) {
	for i := range uploads {
		began := time.Now()
		if err := do(i); err != nil {
			return 0, err
		}
		if took := time.Since(began).Seconds(); i == 0 || took < seconds {
			seconds = took
		}
	}
	return seconds, nil
}

func kansaUpload(ctx context.Context, server *sshd, port int, source, name string, size int64) error {
	client, err := sftp.Dial(ctx, sftp.Config{
		Host: "127.0.0.1", Port: port, User: server.user, PrivateKey: server.keyPEM, HostKeys: []string{server.fingerprint}, Path: server.incoming,
	}, warnings())
	if err != nil {
		return err
	}
	in, err := os.Open(source)
	if err != nil {
		return errors.Join(err, client.Close())
	}
	defer in.Close()
	_, err = client.Upload(ctx, name, size, in, nil)
	return errors.Join(err, client.Close())
}

// sftp runs OpenSSH's own client in batch mode, with its defaults.
func (s *sshd) sftp(ctx context.Context, port int, batch string) error {
	program, err := exec.LookPath("sftp")
	if err != nil {
		return fmt.Errorf("find OpenSSH's client: %w", err)
	}
	cmd := exec.CommandContext(ctx, program, "-q", "-b", "-", "-P", strconv.Itoa(port), "-F", "none", "-i", s.keyFile,
		"-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", s.user+"@127.0.0.1")
	cmd.Stdin = strings.NewReader(batch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("sftp: %w: %s", err, out)
	}
	return nil
}

func (s *sshd) rclone(ctx context.Context, port int, source, target string) error {
	program, err := exec.LookPath("rclone")
	if err != nil {
		return fmt.Errorf("find rclone: %w", err)
	}
	remote := fmt.Sprintf(":sftp,host=127.0.0.1,port=%d,user=%s,key_file=%s,shell_type=none:%s", port, s.user, s.keyFile, target)
	cmd := exec.CommandContext(ctx, program, "--config", os.DevNull, "copyto", source, remote)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("rclone: %w: %s", err, out)
	}
	return nil
}

// randomFile makes a file that nothing on the way can compress.
func randomFile(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("make a file: %w", err)
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{1}), size)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("make a file: %w", err)
	}
	return nil
}
