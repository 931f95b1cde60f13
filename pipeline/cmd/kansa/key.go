package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/keys"
)

type keyCmd struct {
	Show   keyShowCmd   `cmd:"" help:"Print the verifier key: what auditors are given."`
	Rotate keyRotateCmd `cmd:"" help:"Put a new sealing key in the place of the old one, which signs for it."`
}

// keyFlags say which key.
type keyFlags struct {
	configFlag
	DataDir string `placeholder:"DIR" help:"Where the key lies; in place of data_dir of the configuration."`
}

// open loads the configuration and opens the partition store.
func (f *keyFlags) open(e *env) (cfg *config.Config, bucket *blob.Bucket, err error) {
	if cfg, err = config.Load(f.Config); err != nil {
		return nil, nil, err
	}
	if f.DataDir != "" {
		cfg.DataDir = f.DataDir
	}
	if _, err := os.Stat(cfg.DataDir); err != nil { // a wrong directory must not get a key
		return nil, nil, fmt.Errorf("open data_dir: %w", err)
	}
	bucket, err = pipeline.OpenPartitions(e.ctx, cfg)
	return cfg, bucket, err
}

type keyShowCmd struct {
	keyFlags
	All bool `help:"Print the keys before it too, the oldest first."`
}

func (*keyShowCmd) Help() string {
	return "Give it to auditors on another way than the archives. Any key of the row will do: the rotations kept beside the partitions lead from each to the others. " +
		"Where there is no key yet, it is made."
}

func (c *keyShowCmd) Run(e *env) (err error) {
	cfg, bucket, err := c.open(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bucket.Close()) }()
	k, err := keys.Open(e.ctx, cfg.DataDir, bucket)
	if err != nil {
		return err
	}
	all := k.Ring().Keys()
	if !c.All {
		all = all[len(all)-1:]
	}
	for _, key := range all {
		fmt.Fprintln(e.stdout, key)
	}
	return nil
}

type keyRotateCmd struct{ keyFlags }

func (*keyRotateCmd) Help() string {
	return "A running kansa takes the new key at the next hour it seals. The old private key is gone afterwards. Where several machines " +
		"roll up, copy seal.key to the others: until then they refuse to seal."
}

func (c *keyRotateCmd) Run(e *env) (err error) {
	cfg, bucket, err := c.open(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bucket.Close()) }()
	r, err := keys.Rotate(e.ctx, cfg.DataDir, bucket, time.Now())
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s\n", r.NewKey)
	fmt.Fprintf(e.stderr, "rotation %d: it takes the place of %s. Auditors may keep that one; send them the new one when you can.\n", r.Number, r.OldKey)
	return nil
}
