package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/doctor"
	"github.com/kansa-audit/kansa/pipeline/health"
)

// watchFlags say how a tool that looks at a whole system reaches it: as the other tools do, or as a process would.
type watchFlags struct {
	natsFlags
	configFlag
}

// reach connects, and returns the configuration if one is named.
func (f *watchFlags) reach(ctx context.Context, name string) (*broker.Client, *config.Config, error) {
	if f.Config == "" {
		client, err := f.connect(ctx, name)
		return client, nil, err
	}
	cfg, err := config.Load(f.Config)
	if err != nil {
		return nil, nil, err
	}
	if cfg.NATS.URL != "" {
		client, err := pipeline.ConnectTool(ctx, cfg, name)
		return client, cfg, err
	}
	// The embedded one: the configuration says where it listens, and the flags who asks, if it wants to know.
	host := cfg.NATS.Listen
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	if cfg.NATS.Port != 0 {
		f.NATS = "nats://" + net.JoinHostPort(host, strconv.Itoa(cfg.NATS.Port))
	}
	if f.Data == "" && f.TokenFile == "" {
		if _, err := os.Stat(filepath.Join(cfg.DataDir, pipeline.OperatorKeyFile)); err == nil {
			f.Data = cfg.DataDir
		}
	}
	client, err := f.connect(ctx, name)
	return client, cfg, err
}

type doctorCmd struct {
	watchFlags
	JSON bool `name:"json" help:"Print the report as JSON."`
}

func (*doctorCmd) Help() string {
	return `Asks the broker and every running process, and says what is wrong, where, and what to do. It changes nothing. The exit code is 1 if
something is failing, and 0 with warnings alone. With -c it reaches the broker as a process with that configuration does, and looks at
the files that it names.

  kansa doctor
  kansa doctor -c /etc/kansa/kansa.yaml
  kansa doctor --json`
}

func (c *doctorCmd) Run(e *env) error {
	r, err := c.look(e.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		printFindings(e.stdout, r)
	}
	if err == nil && !r.OK {
		return errFailed
	}
	return err
}

func (c *doctorCmd) look(ctx context.Context) (*doctor.Report, error) {
	client, cfg, err := c.reach(ctx, "doctor")
	if err != nil && (cfg != nil || c.Config == "") { // the configuration is not what is wrong
		return doctor.Unreachable(err), nil
	}
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return doctor.Look(ctx, doctor.System{Client: client, Config: cfg})
}

func printFindings(w io.Writer, r *doctor.Report) {
	for i := range r.Processes {
		p := &r.Processes[i]
		fmt.Fprintf(w, "%s  %s  %s, since %s\n", p.Name(), strings.Join(p.Roles, ","), p.Version, p.Since.Local().Format("2006-01-02 15:04:05"))
	}
	for _, f := range r.Facts {
		fmt.Fprintf(w, "  %-26s %s  (%s)\n", f.Name, f.Value, f.Where)
	}
	if len(r.Processes)+len(r.Facts) > 0 {
		fmt.Fprintln(w)
	}
	failing := 0
	for _, f := range r.Findings {
		if f.Severity == health.Failing {
			failing++
		}
		fmt.Fprintf(w, "%-7s  %s: %s: %s\n", f.Severity, f.Where, f.Check, f.Reason)
		if f.Remedy != "" {
			fmt.Fprintf(w, "         what to do: %s\n", f.Remedy)
		}
	}
	switch {
	case len(r.Findings) == 0:
		fmt.Fprintln(w, "All is well.")
	case failing == 0:
		fmt.Fprintf(w, "\nIt works; %d things to look at.\n", len(r.Findings))
	default:
		fmt.Fprintf(w, "\n%d failing, %d to look at.\n", failing, len(r.Findings)-failing)
	}
}
