package pipeline_test

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/partitions"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/sample"
)

// Requirements Z11, B10: the whole path with everything encrypted at rest: events are stored, rolled up and delivered, the archive is an
// archive as any other, and whoever has the key can verify the store.
func TestEncryptedSystem(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Rollup.Hour = time.Second
	keys := t.TempDir()
	secret := func(name, text string) config.Secret {
		t.Helper()
		path := filepath.Join(keys, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return config.Secret{File: path}
	}
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	c.Encryption = config.Encryption{
		Streams: secret("streams", "any text"), ClickHouse: secret("clickhouse", hex.EncodeToString(make([]byte, 32))),
		Partitions: secret("partitions", identity.String()),
	}
	out := t.TempDir()
	c.Destinations = []exporter.Destination{{
		Name: "archive", Organization: "acme", Trails: []schema.Trail{schema.Activity}, Bucket: "file://" + filepath.ToSlash(out),
	}}
	s := pipelinetest.Start(t, c, pipeline.RoleWriter, pipeline.RoleRollup, pipeline.RoleExporter)
	p, err := producers.New(s.Client.JS, producers.Config{})
	if err != nil {
		t.Fatal(err)
	}
	source := sample.New(5, nil)
	from := time.Now().UTC().Truncate(time.Second)
	const events = 500
	for range events {
		e := source.Next()
		e.Organization, e.Trail = "acme", schema.Activity
		if _, err := p.PublishAsync(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	to := time.Now().UTC().Truncate(time.Second).Add(time.Second)
	err = exporter.Submit(t.Context(), s.Client.JS, exporter.Request{
		ID: "acme.all", Organization: "acme", Trails: []schema.Trail{schema.Activity}, From: from, To: to, Destination: "archive", RequestedBy: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		e, _, err := s.States.Get(t.Context(), "acme.all")
		return e.State == exporter.Done, errors.Join(err, errors.New(string(e.State)+" "+e.Error))
	})
	archives, err := filepath.Glob(filepath.Join(out, "*.zip"))
	if err != nil || len(archives) != 1 {
		t.Fatalf("delivered were %q, %v", archives, err)
	}
	key := filepath.Join(c.DataDir, "seal.pub")
	if got := rowsVerified(t, archives[0], key, nil); got < events { // and what the system says of itself
		t.Errorf("the archive has %d rows, want %d", got, events)
	}
	store := filepath.Join(c.DataDir, "partitions")
	if _, err := verify.Path(t.Context(), store, optionsOf(t, key, nil)); !errors.Is(err, partitions.ErrNoIdentity) || !strings.Contains(err.Error(), "--identity") {
		t.Errorf("without the key: %v", err)
	}
	if got := rowsVerified(t, store, key, []age.Identity{identity}); got < events {
		t.Errorf("the store has %d rows, want %d", got, events)
	}
	files := 0
	err = filepath.WalkDir(store, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".tmp") {
			return err
		}
		text, err := os.ReadFile(path)
		if !strings.HasPrefix(string(text), "age-encryption.org/v1\n") && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is in plain, %v", path, err)
		}
		files++
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%d files, %v", files, err)
	}
}

func optionsOf(t *testing.T, key string, identities []age.Identity) verify.Options {
	t.Helper()
	text, err := verify.ReadKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return verify.Options{Key: text, Identities: identities}
}

// rowsVerified returns how many rows of acme's activity hold.
func rowsVerified(t *testing.T, path, key string, identities []age.Identity) (rows uint64) {
	t.Helper()
	r, err := verify.Path(context.WithoutCancel(t.Context()), path, optionsOf(t, key, identities))
	if err != nil || !r.OK {
		t.Fatalf("%s does not hold: %v %+v", path, err, r)
	}
	for _, s := range r.Series {
		if s.Organization == "acme" && s.Trail == schema.Activity {
			rows += s.Rows
		}
	}
	return rows
}
