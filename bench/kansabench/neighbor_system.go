package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/loglimit"
)

type systemSettings struct {
	Dir string `json:"dir"`
	Log string `json:"log"` // the file of its log
	// Profile is where the engine's profiles go; none if empty.
	Profile string `json:"profile"`
}

// systemPart is all that kansa up starts, with the default limits. Destinations may be on loopback, where the attack has its server.
func systemPart(ctx context.Context, s *session) (r report, err error) {
	var set systemSettings
	if err := s.in.Decode(&set); err != nil {
		return r, fmt.Errorf("read settings: %w", err)
	}
	log, err := os.Create(set.Log)
	if err != nil {
		return r, fmt.Errorf("create the log: %w", err)
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return r, fmt.Errorf("find this program: %w", err)
	}
	c := config.Default()
	c.DataDir, c.NATS.Port, c.API.Listen, c.Health.Listen = set.Dir, 0, "127.0.0.1:0", ""
	c.Exports.Allow.Networks = []string{"127.0.0.0/8"}
	if err := c.Check(); err != nil {
		return r, err
	}
	command := []string{self, "part", "engine"}
	if set.Profile != "" {
		command = append(command, "--profile", set.Profile)
	}
	system, err := pipeline.Start(ctx, pipeline.Options{
		Config: c, Roles: pipeline.Roles, EngineCommand: command, Version: "bench",
		Logger: slog.New(loglimit.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: c.Log.Level}))),
	})
	if err != nil {
		return r, err
	}
	r.URL, r.NATS, r.Engine = system.API.URL(), system.NATSURL(), system.Engine.PID()
	s.say(r)
	select {
	case <-s.untilTold(ctx, nil).Done():
	case <-system.Failed():
	}
	return r, system.Close()
}

// operatorKey is the key that a system made for the tools of its machine.
func operatorKey(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, pipeline.OperatorKeyFile))
	if err != nil {
		return "", fmt.Errorf("read the operator's key: %w", err)
	}
	return string(text), nil
}
