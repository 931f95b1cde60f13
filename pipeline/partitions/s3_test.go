package partitions_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/pipeline/partitions"
)

// The credentials of the S3 server; the AWS SDK takes them from the environment.
const s3User, s3Secret = "kansa", "kansa-secret"

func TestMain(m *testing.M) {
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": s3User, "AWS_SECRET_ACCESS_KEY": s3Secret, "AWS_EC2_METADATA_DISABLED": "true"} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	if s3.stop != nil {
		s3.stop()
	}
	os.Exit(code)
}

// s3 is a versitygw, an S3 server over a directory, that all tests share; each has a bucket of its own.
var s3 struct {
	once    sync.Once
	dir     string
	address string
	err     error
	buckets int
	mu      sync.Mutex
	stop    func()
}

func openS3(t *testing.T) (*blob.Bucket, string) {
	t.Helper()
	program := filepath.Join("..", "..", "build", "versitygw")
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatalf("make build/versitygw makes the S3 server: %v", err)
		}
		t.Skipf("make build/versitygw makes the S3 server: %v", err)
	}
	s3.once.Do(func() { s3.err = startS3(program) })
	if s3.err != nil {
		t.Fatal(s3.err)
	}
	s3.mu.Lock()
	s3.buckets++
	name := fmt.Sprintf("bucket-%d", s3.buckets)
	s3.mu.Unlock()
	dir := filepath.Join(s3.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := partitions.Open(t.Context(), "s3://"+name+"?region=us-east-1&use_path_style=true&endpoint=http://"+s3.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, dir
}

func startS3(program string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s3.address = l.Addr().String()
	if err := l.Close(); err != nil { // its port is free now, most likely still when the server takes it
		return err
	}
	temporary, err := os.MkdirTemp("", "kansa-s3-")
	if err != nil {
		return err
	}
	s3.dir = filepath.Join(temporary, "buckets")
	beside := filepath.Join(temporary, "metadata")
	for _, dir := range []string{s3.dir, beside} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	var said strings.Builder
	cmd := exec.Command(program, "--port", s3.address, "--access", s3User, "--secret", s3Secret, "posix", "--sidecar", beside, s3.dir)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s3.stop = func() {
		_ = cmd.Process.Kill()
		<-ended //nolint:errcheck // it was killed
		_ = os.RemoveAll(temporary)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		c, err := net.DialTimeout("tcp", s3.address, time.Second)
		if err == nil {
			return c.Close()
		}
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("the S3 server ended: %w: %s", err, said.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the S3 server does not listen: %w", err)
		}
	}
}
