package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/producers/gateway"
)

// configFlag is shared by the commands that read the configuration.
type configFlag struct {
	Config string `short:"c" placeholder:"FILE" env:"KANSA_CONFIG" help:"Configuration file (YAML). Without it, every key has its default."`
}

type upCmd struct {
	configFlag
	DataDir string `placeholder:"DIR" help:"Where the data lie; in place of data_dir of the configuration."`
}

func (*upCmd) Help() string {
	return "Starts NATS JetStream and ClickHouse inside and stores, rolls up and exports what is published on audit.events.<organization>.<trail> or posted to the API. " +
		"With nats.url or clickhouse.url in the configuration, those servers are used instead. SIGTERM drains and stops it."
}

func (c *upCmd) Run(e *env) error {
	cfg, err := config.Load(c.Config)
	if err != nil {
		return err
	}
	if c.DataDir != "" {
		cfg.DataDir = c.DataDir
	}
	return runSystem(e, cfg, pipeline.Roles)
}

type runCmd struct {
	configFlag
	Roles []string `arg:"" name:"role" help:"writer, rollup, exporter, api, gateway: any of them."`
}

func (*runCmd) Help() string {
	return "Each role can run in any number of processes. The configuration has to name nats.url, and, for writer and rollup, clickhouse.url."
}

func (c *runCmd) Run(e *env) error {
	cfg, err := config.Load(c.Config)
	if err != nil {
		return err
	}
	roles, err := pipeline.ParseRoles(c.Roles)
	if err != nil {
		return err
	}
	if err := pipeline.CheckExternal(cfg, roles); err != nil {
		return fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	return runSystem(e, cfg, roles)
}

// runSystem runs until it is told to stop or a role fails.
func runSystem(e *env, cfg *config.Config, roles []pipeline.Role) error {
	log := logger(e.stderr, cfg.Log)
	command, err := engineCommand()
	if err != nil {
		return err
	}
	s, err := pipeline.Start(e.ctx, pipeline.Options{Config: cfg, Roles: roles, EngineCommand: command, Version: version, Logger: log})
	if err != nil {
		return err
	}
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	fmt.Fprintf(e.stderr, "kansa %s is up: %s\n  NATS       %s\n", version, strings.Join(names, ", "), s.NATSURL())
	if s.Engine != nil {
		fmt.Fprintf(e.stderr, "  ClickHouse %s (for analysts: kansa analyst add)\n", s.Engine.URL())
	}
	if s.API != nil {
		fmt.Fprintf(e.stderr, "  API        %s\n", s.API.URL())
	}
	if s.Gateway != nil {
		fmt.Fprintf(e.stderr, "  events     POST %s%s, with the key of a publisher: kansa apikey add ORGANIZATION/NAME\n", s.API.URL(), gateway.Path)
	}
	if cfg.NATS.URL == "" {
		fmt.Fprintf(e.stderr, "  tools      use the operator key in %s\n", s.OperatorKeyFile())
	}
	if err := firstAdmin(e, s); err != nil {
		return errors.Join(err, s.Close())
	}
	select {
	case <-e.ctx.Done():
		log.Info("stopping")
	case <-s.Failed():
	}
	return s.Close()
}

// firstAdmin prints the link by which the first admin is made, while there is nobody.
func firstAdmin(e *env, s *pipeline.System) error {
	if s.API == nil || !s.API.HasAudit() {
		return nil
	}
	token, err := s.Access.First(e.ctx)
	if err != nil || token == "" {
		return err
	}
	// What follows # is not sent to the server, and so is in no log.
	fmt.Fprintf(e.stderr, "  nobody can sign in yet; make the first admin, once, at\n             %s/first#%s\n", s.API.URL(), token)
	return nil
}

// engineCommand runs this program again as the engine's process.
func engineCommand() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	return []string{self, "engine"}, nil
}

type engineCmd struct{}

func (engineCmd) Run(e *env) error { return engine.Main(e.ctx, e.stdin, e.stderr) }
