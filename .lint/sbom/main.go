// Command sbom prints the bill of materials of a kansa binary as CycloneDX 1.6: the Go modules that the linker put into it,
// with their checksums, the toolchain, the engine's library and what the console shows charts with from npm's lockfiles.
//
//	sbom BINARY VERSION package-lock.json…
//
// The same binary gives the same bytes: there is no time in it, and the serial number is made of the content.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

type hash struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

type bom struct {
	Format       string               `json:"bomFormat"`
	SpecVersion  string               `json:"specVersion"`
	SerialNumber string               `json:"serialNumber,omitempty"`
	Version      int                  `json:"version"`
	Meta         map[string]component `json:"metadata"`
	Components   []component          `json:"components"`
	Dependencies []dependency         `json:"dependencies"`
}

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: sbom BINARY VERSION package-lock.json…")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(binary, version string, lockfiles []string) error {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return err
	}
	file, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(file)
	self := golang("application", info.Main.Path, version, "")
	self.Hashes = []hash{{"SHA-256", hex.EncodeToString(sum[:])}}
	b := bom{Format: "CycloneDX", SpecVersion: "1.6", Version: 1, Meta: map[string]component{"component": self}}
	b.Components = append(b.Components, golang("library", "std", strings.TrimPrefix(info.GoVersion, "go"), ""))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		b.Components = append(b.Components, golang("library", m.Path, m.Version, m.Sum))
	}
	for _, lockfile := range lockfiles {
		libraries, err := npm(lockfile)
		if err != nil {
			return err
		}
		b.Components = append(b.Components, libraries...)
	}
	all := dependency{Ref: self.Ref}
	for _, c := range b.Components {
		all.DependsOn = append(all.DependsOn, c.Ref)
	}
	b.Dependencies = []dependency{all}
	content, err := json.Marshal(b)
	if err != nil {
		return err
	}
	id := sha256.Sum256(content)
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // a UUID of version 8: of our own making
	b.SerialNumber = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16])
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", " ")
	out.SetEscapeHTML(false)
	return out.Encode(b)
}

func golang(kind, module, version, sum string) component {
	purl := "pkg:golang/" + module + "@" + version
	c := component{Type: kind, Ref: purl, Name: module, Version: version, PURL: purl}
	if sum != "" { // h1: a hash of the module's files, not of one file
		c.Properties = []property{{"go:sum", sum}}
	}
	return c
}

// npm are the packages that the lockfile has a hash of: those that were fetched for this platform.
func npm(lockfile string) (all []component, err error) {
	text, err := os.ReadFile(lockfile)
	if err != nil {
		return nil, err
	}
	var lock struct {
		Packages map[string]struct{ Version, Integrity string }
	}
	if err := json.Unmarshal(text, &lock); err != nil {
		return nil, err
	}
	for at, p := range lock.Packages {
		encoded, ok := strings.CutPrefix(p.Integrity, "sha512-")
		if !ok {
			continue
		}
		sum, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(at, "node_modules/")
		purl := "pkg:npm/" + strings.Replace(name, "@", "%40", 1) + "@" + p.Version
		all = append(all, component{
			Type: "library", Ref: purl, Name: name, Version: p.Version, PURL: purl, Hashes: []hash{{"SHA-512", hex.EncodeToString(sum)}},
		})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no hash of a package", lockfile)
	}
	slices.SortFunc(all, func(a, b component) int { return strings.Compare(a.Ref, b.Ref) })
	return all, nil
}
