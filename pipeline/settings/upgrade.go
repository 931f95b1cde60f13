package settings

import (
	"encoding/json"

	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
)

// upgrades bring a document from the version of their key to the next.
var upgrades = map[int]func(*document) error{
	// Before version 2 nobody chose algorithms, and every one was offered. Such a destination goes on offering all of
	// them, the weak ones too, until somebody chooses (requirement I16).
	1: func(d *document) error {
		var value map[string]any
		if err := json.Unmarshal(d.Value, &value); err != nil {
			return err
		}
		server, ok := value["sftp"].(map[string]any)
		if !ok {
			return nil
		}
		known := sftp.KnownAlgorithms()
		for field, list := range map[string][]sftp.Algorithm{
			"key_exchanges": known.KeyExchanges, "ciphers": known.Ciphers, "macs": known.MACs, "host_key_algorithms": known.HostKeyAlgorithms,
		} {
			if _, chosen := server[field]; !chosen {
				names := make([]string, len(list))
				for i, a := range list {
					names[i] = a.Name
				}
				server[field] = names
			}
		}
		data, err := json.Marshal(value)
		d.Value = data
		return err
	},
}
