package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/durable"
)

type apikeyCmd struct {
	Add    apikeyAddCmd    `cmd:"" help:"Make an API key and print it, once."`
	List   apikeyListCmd   `cmd:"" help:"List API keys, without their secrets."`
	Revoke apikeyRevokeCmd `cmd:"" help:"Revoke an API key, and end what it has opened."`
}

type apikeyAddCmd struct {
	natsFlags
	Name    string `arg:"" help:"ORGANIZATION/NAME; NAME alone makes a key for all organizations."`
	Role    string `enum:"publisher,auditor,admin" default:"publisher" help:"publisher publishes events, auditor reads and exports, admin also changes settings (${default})."`
	Mapping string `placeholder:"NAME" help:"Mapping of the records that this publisher sends over HTTP: kansa mapping list."`
	Days    int    `default:"365" help:"How many days it works (${default})."`
	Out     string `short:"o" placeholder:"FILE" help:"Write the key to a new file that only its owner can read, instead of printing it."`
	JSON    bool   `name:"json" help:"Print the key and its properties as JSON."`
}

func (*apikeyAddCmd) Help() string {
	return `The key is shown this once; Kansa keeps only its hash. Publishers send it as Authorization: Bearer KEY over HTTP, and as the token over NATS.

  kansa apikey add acme/billing
  kansa apikey add acme/billing -o billing.key
  kansa apikey add acme/cloudtrail --mapping cloudtrail
  kansa apikey add --role admin deployment          # for all organizations`
}

func (c *apikeyAddCmd) Run(e *env) error {
	k := access.Key{Name: c.Name, Role: access.Role(c.Role), Mapping: c.Mapping}
	if organization, name, ok := strings.Cut(c.Name, "/"); ok {
		k.Organization, k.Name = organization, name
	}
	client, err := c.connect(e.ctx, "apikey")
	if err != nil {
		return err
	}
	defer client.Close()
	var file *os.File
	if c.Out != "" { // before there is a key that could be lost
		if file, err = os.OpenFile(c.Out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return fmt.Errorf("write the key: %w", err)
		}
		defer file.Close()
		if err := durable.Adopt(file, c.Out); err != nil {
			return err
		}
	}
	made, err := operatorOf(client).AddKey(e.ctx, k, c.Days)
	if err != nil {
		if file != nil {
			_ = os.Remove(c.Out) // it is empty
		}
		return err
	}
	if file != nil {
		if _, err := file.WriteString(made.Secret + "\n"); err != nil {
			return fmt.Errorf("write the key to %s: %w: revoke it by kansa apikey revoke %s", c.Out, err, made.Name)
		}
		if err := file.Close(); err != nil {
			return fmt.Errorf("write the key to %s: %w: revoke it by kansa apikey revoke %s", c.Out, err, made.Name)
		}
		made.Secret = ""
	}
	switch {
	case c.JSON:
		return json.NewEncoder(e.stdout).Encode(made)
	case made.Secret != "":
		fmt.Fprintln(e.stdout, made.Secret)
	}
	fmt.Fprintf(e.stderr, "key %s: %s of %s until %s\n", made.Name, made.Role, ofOrganizations(made.Organization), made.Expires.Format(time.DateOnly))
	return nil
}

// ofOrganizations is how people read the organization of a key.
func ofOrganizations(organization string) string {
	if organization == "" {
		return "all organizations"
	}
	return organization
}

type apikeyListCmd struct {
	natsFlags
	Organization string `arg:"" optional:"" help:"The organization; all if not given."`
	JSON         bool   `name:"json" help:"One JSON object a line."`
}

func (c *apikeyListCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "apikey")
	if err != nil {
		return err
	}
	defer client.Close()
	all, err := operatorOf(client).Keys(e.ctx, c.Organization)
	if err != nil {
		return err
	}
	if c.JSON {
		return jsonLines(e, all)
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tORGANIZATION\tROLE\tMAPPING\tEXPIRES\tCREATED\tBY")
	for i := range all {
		k := &all[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.Name, ofOrganizations(k.Organization), k.Role, cmp.Or(k.Mapping, "-"), k.Expires.Format(time.DateOnly), k.Created.Format(time.DateOnly), k.By)
	}
	return t.Flush()
}

type apikeyRevokeCmd struct {
	natsFlags
	Name string `arg:"" help:"The key's name."`
}

func (c *apikeyRevokeCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "apikey")
	if err != nil {
		return err
	}
	defer client.Close()
	k, err := operatorOf(client).RevokeKey(e.ctx, c.Name)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "key %s of %s is revoked\n", k.Name, ofOrganizations(k.Organization))
	return nil
}
