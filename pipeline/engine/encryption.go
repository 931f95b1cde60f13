package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/kansa-audit/kansa/pipeline/durable"
)

// The engine encrypts what its tables hold by a disk of its own (AES-256-CTR, a key in the environment of its process): a
// config.xml in its working directory says so, which the library reads. What was stored in plain stays where it is and is
// moved in the background. Definitions of tables stay in plain.

// ErrKeys means that keys can not be used.
var ErrKeys = errors.New("the engine's keys can not be used")

const (
	keySize      = 32
	keysFile     = "keys"          // ids of the keys that parts may have been encrypted with, a line each
	encryptedDir = "encrypted"     // beside data
	keyHeader    = 64              // what the library puts before an encrypted file
	keyVariable  = "KANSA_ENGINE_" // and the key's id
	policy       = "encrypted"
)

// Key is 32 bytes, as 64 hexadecimal digits a line of a key file. Its id is made of it, so that keys may be given in any
// order but for the first, with which everything new is encrypted.
type Key [keySize]byte

// ParseKeys reads keys, a line each, the newest first. Lines that begin with # are comments.
func ParseKeys(text []byte) ([]Key, error) {
	var keys []Key
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		b, err := hex.DecodeString(line)
		if err != nil || len(b) != keySize {
			return nil, fmt.Errorf("%w: line %d is not 64 hexadecimal digits: kansa key generate clickhouse makes one", ErrKeys, i+1)
		}
		keys = append(keys, Key(b))
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: there are none", ErrKeys)
	}
	return keys, nil
}

// ID names a key. It says nothing about it.
func (k Key) ID() string {
	sum := sha256.Sum256(append([]byte("kansa engine key\n"), k[:]...))
	return strconv.FormatUint(binary.BigEndian.Uint64(sum[:8]), 10)
}

var configuration = template.Must(template.New("").Parse(`<clickhouse>
  <storage_configuration>
    <disks>
      <beneath><type>local</type><path>{{.Dir}}/</path></beneath>
      <encrypted>
        <type>encrypted</type><disk>beneath</disk><path>data/</path><algorithm>AES_256_CTR</algorithm>
{{- range .IDs}}
        <key_hex id="{{.}}" from_env="{{$.Variable}}{{.}}"/>
{{- end}}
        <current_key_id>{{index .IDs 0}}</current_key_id>
      </encrypted>
    </disks>
    <policies>
      <encrypted>
        <volumes><new><disk>encrypted</disk></new><before><disk>default</disk></before></volumes>
        <move_factor>0</move_factor>
      </encrypted>
    </policies>
  </storage_configuration>
  <merge_tree><storage_policy>encrypted</storage_policy></merge_tree>
</clickhouse>
`))

// prepareKeys holds the keys against those that were used before, and writes what the library reads. It returns what
// is added to the child's environment.
func prepareKeys(dir string, keys []Key) (environment []string, err error) {
	path := filepath.Join(dir, keysFile)
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	used := strings.Fields(string(text))
	ids := make([]string, len(keys))
	for i, k := range keys {
		ids[i] = k.ID()
		environment = append(environment, keyVariable+ids[i]+"="+hex.EncodeToString(k[:]))
	}
	for _, id := range used {
		if !slices.Contains(ids, id) {
			return nil, fmt.Errorf("%w: the key with the id %s is missing, and %s may hold what only it opens: add it behind the others (encryption.clickhouse). "+
				"If nothing is left of it, take its line out of %s", ErrKeys, id, dir, path)
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	for _, id := range ids {
		if !slices.Contains(used, id) {
			used = append(used, id)
		}
	}
	if err := durable.Replace(path, []byte(strings.Join(used, "\n")+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	var config bytes.Buffer
	if err := configuration.Execute(&config, map[string]any{"Dir": filepath.Join(dir, encryptedDir), "IDs": ids, "Variable": keyVariable}); err != nil {
		return nil, err
	}
	if err := leadBack(filepath.Join(dir, encryptedDir, "data")); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	if err := durable.Replace(filepath.Join(dir, "config.xml"), config.Bytes(), 0o600); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	return environment, nil
}

// leadBack makes the root of the encrypted disk, and in it a path of the same name that leads back to it: when the
// library (26.7) syncs the directory of a part, it looks for the whole path below the root once more.
func leadBack(root string) error {
	again := filepath.Join(root, root)
	if err := os.MkdirAll(filepath.Dir(again), 0o700); err != nil {
		return err
	}
	if to, err := os.Readlink(again); err == nil && to == root {
		return nil
	}
	return os.Symlink(root, again)
}

// moveEncrypted moves what lies in plain to the encrypted disk, a partition at a time, until ctx ends.
func moveEncrypted(ctx context.Context, s *session, log *slog.Logger) error {
	res, err := s.query("SELECT DISTINCT database, table, partition_id FROM system.parts WHERE active AND disk_name = 'default' ORDER BY ALL", "TabSeparated", nil)
	if err != nil {
		return fmt.Errorf("look for what is in plain: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(res.data())), "\n")
	res.close()
	for _, line := range lines {
		part := strings.Split(line, "\t")
		if len(part) != 3 {
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if err := s.exec(fmt.Sprintf("ALTER TABLE `%s`.`%s` MOVE PARTITION ID '%s' TO VOLUME 'new'", part[0], part[1], part[2])); err != nil {
			return fmt.Errorf("encrypt partition %s of %s.%s: %w", part[2], part[0], part[1], err)
		}
		log.Info("encrypted what was in plain", slog.String("table", part[0]+"."+part[1]), slog.String("partition", part[2]))
	}
	return nil
}
