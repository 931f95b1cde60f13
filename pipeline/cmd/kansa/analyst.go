package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kansa-audit/kansa/pipeline/analyst"
	"github.com/kansa-audit/kansa/pipeline/broker"
)

type analystCmd struct {
	Add     analystAddCmd     `cmd:"" help:"Add an analyst and print the password, once."`
	List    analystListCmd    `cmd:"" help:"List analysts."`
	Show    analystShowCmd    `cmd:"" help:"Show how an analyst connects."`
	Remove  analystRemoveCmd  `cmd:"" help:"Remove an analyst; running queries end."`
	Queries analystQueriesCmd `cmd:"" help:"List running queries of analysts."`
	Kill    analystKillCmd    `cmd:"" help:"End a running query."`
}

func analystsOf(c *broker.Client) analyst.Client {
	by := operatorOf(c).By
	return analyst.Client{NC: c.NC, By: by}
}

type analystName struct {
	Name string `arg:"" name:"organization/name" help:"acme/ann sees the organization acme; ann, without an organization, sees all."`
}

func (n *analystName) split() (organization, name string) {
	if organization, name, ok := strings.Cut(n.Name, "/"); ok {
		return organization, name
	}
	return "", n.Name
}

type analystAddCmd struct {
	natsFlags
	analystName
	Days int  `default:"365" help:"How many days the account works (${default})."`
	JSON bool `name:"json" help:"Print the account as JSON."`
}

func (*analystAddCmd) Help() string {
	return "An analyst runs read-only SQL against ClickHouse and sees the rows of one organization. Only a hash of the password is kept. " +
		"The limits are clickhouse.analysts of the configuration. With clickhouse.url, the account is made on that server."
}

func (c *analystAddCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "analyst")
	if err != nil {
		return err
	}
	defer client.Close()
	organization, name := c.split()
	made, err := analystsOf(client).Add(e.ctx, organization, name, c.Days)
	if err != nil {
		return err
	}
	if c.JSON {
		return jsonLines(e, []analyst.Added{*made})
	}
	printConnection(e, &made.Connection)
	fmt.Fprintf(e.stdout, "password  %s\n", made.Password)
	fmt.Fprintln(e.stderr, "This is the only time the password is shown.")
	return nil
}

func printConnection(e *env, c *analyst.Connection) {
	fmt.Fprintf(e.stdout, "analyst   %s\naddress   %s\ndatabase  %s\nuser      %s\nexpires   %s\n", c.FullName(), c.Address, c.Database, c.Username, c.Expires.Format(time.DateOnly))
}

type analystListCmd struct {
	natsFlags
	Organization string `arg:"" optional:"" help:"The organization; all if not given."`
	JSON         bool   `name:"json" help:"One JSON object a line."`
}

func (c *analystListCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "analyst")
	if err != nil {
		return err
	}
	defer client.Close()
	all, err := analystsOf(client).List(e.ctx, c.Organization)
	if err != nil {
		return err
	}
	if c.JSON {
		return jsonLines(e, all)
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ANALYST\tUSER\tEXPIRES\tADDED BY")
	for i := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", all[i].FullName(), all[i].Username, all[i].Expires.Format(time.DateOnly), all[i].By)
	}
	return w.Flush()
}

type analystShowCmd struct {
	natsFlags
	analystName
	JSON bool `name:"json" help:"Print it as JSON."`
}

func (c *analystShowCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "analyst")
	if err != nil {
		return err
	}
	defer client.Close()
	organization, name := c.split()
	shown, err := analystsOf(client).Show(e.ctx, organization, name)
	if err != nil {
		return err
	}
	if c.JSON {
		return jsonLines(e, []analyst.Connection{*shown})
	}
	printConnection(e, shown)
	return nil
}

type analystRemoveCmd struct {
	natsFlags
	analystName
}

func (c *analystRemoveCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "analyst")
	if err != nil {
		return err
	}
	defer client.Close()
	organization, name := c.split()
	if err := analystsOf(client).Remove(e.ctx, organization, name); err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "%s was removed\n", c.Name)
	return nil
}

type analystQueriesCmd struct {
	natsFlags
	Organization string `arg:"" optional:"" help:"The organization; all if not given."`
	JSON         bool   `name:"json" help:"One JSON object a line."`
}

func (c *analystQueriesCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "analyst")
	if err != nil {
		return err
	}
	defer client.Close()
	all, err := analystsOf(client).Queries(e.ctx, c.Organization)
	if err != nil {
		return err
	}
	if c.JSON {
		return jsonLines(e, all)
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "QUERY ID\tUSER\tSECONDS\tSTATEMENT")
	for i := range all {
		q := &all[i]
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.80s\n", q.QueryID, q.Username, time.Since(q.Started).Seconds(), strings.Join(strings.Fields(q.Query), " "))
	}
	return w.Flush()
}

type analystKillCmd struct {
	natsFlags
	QueryID string `arg:"" name:"query-id" help:"The id, as kansa analyst queries lists it."`
}

func (c *analystKillCmd) Run(e *env) error {
	client, err := c.connect(e.ctx, "analyst")
	if err != nil {
		return err
	}
	defer client.Close()
	n, err := analystsOf(client).Kill(e.ctx, "", c.QueryID)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "%d killed\n", n)
	return nil
}
