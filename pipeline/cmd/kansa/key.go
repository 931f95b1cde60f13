package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"filippo.io/age"
	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/durable"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/partitions"
)

type keyCmd struct {
	Show     keyShowCmd     `cmd:"" help:"Print the verifier key: what auditors are given."`
	Rotate   keyRotateCmd   `cmd:"" help:"Put a new sealing key in the place of the old one, which signs for it."`
	Generate keyGenerateCmd `cmd:"" help:"Make a key for encryption at rest."`
	Encrypt  keyEncryptCmd  `cmd:"" help:"Encrypt with the newest key what the partition store has in plain or under an older one."`
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

type keyGenerateCmd struct {
	For string `arg:"" name:"for" enum:"streams,clickhouse,partitions" help:"Whose: streams, clickhouse or partitions, as the configuration names them below encryption."`
	Out string `short:"o" required:"" placeholder:"FILE" help:"Where it goes. If the file is there, the new key goes in front of those in it."`
}

func (*keyGenerateCmd) Help() string {
	return "Name the file in the configuration: encryption.streams.file, .clickhouse.file or .partitions.file. Keep a copy of it where the data is not: without it " +
		"nobody can read them again. A key of streams replaces the one in the file, which is kept as FILE.before, for encryption.streams_before.file; of the others, older keys stay " +
		"in the file behind the new one. The key of partitions is an age identity, so that age -d -i FILE reads any partition without Kansa."
}

func (c *keyGenerateCmd) Run(e *env) error {
	var key string
	switch c.For {
	case "partitions":
		identity, err := age.GenerateX25519Identity()
		if err != nil {
			return fmt.Errorf("make a key: %w", err)
		}
		key = fmt.Sprintf("# %s, recipient %s\n%s\n", time.Now().UTC().Format(time.RFC3339), identity.Recipient(), identity)
	default:
		b := make([]byte, 32)
		_, _ = rand.Read(b) // never fails
		key = hex.EncodeToString(b) + "\n"
	}
	before, err := os.ReadFile(c.Out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make a key: %w", err)
	}
	if c.For == "streams" && before != nil {
		if err := durable.Replace(c.Out+".before", before, 0o600); err != nil {
			return fmt.Errorf("keep the key before: %w", err)
		}
		before = nil
	}
	if err := durable.Replace(c.Out, append([]byte(key), before...), 0o600); err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	fmt.Fprintf(e.stderr, "%s: name it in encryption.%s.file, and keep a copy of it where the data is not.\n", c.Out, c.For)
	if info, err := os.Stat(c.Out); err == nil && os.Geteuid() == 0 {
		if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid == 0 {
			fmt.Fprintf(e.stderr, "only root can read %s: if kansa runs as another user, give the file to that user (chown), or write it into a directory of that user.\n", c.Out)
		}
	}
	return nil
}

type keyEncryptCmd struct{ keyFlags }

func (*keyEncryptCmd) Help() string {
	return "May run beside a working kansa that has the same keys, may be stopped at any time, and goes on where it was. When it has ended, no object needs an older key."
}

func (c *keyEncryptCmd) Run(e *env) (err error) {
	_, bucket, err := c.open(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bucket.Close()) }()
	bar, done := newProgress(e.stderr), 0
	n, err := partitions.Reencrypt(e.ctx, bucket, func(key string) {
		done++
		bar.show("encrypting  %s  %s", grouped(uint64(done)), key)
	})
	bar.clear()
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s objects encrypted anew\n", grouped(uint64(n)))
	return nil
}
