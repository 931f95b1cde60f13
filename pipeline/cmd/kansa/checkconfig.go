package main

import (
	"fmt"

	"github.com/goccy/go-yaml"

	"github.com/kansa-audit/kansa/pipeline/config"
)

type checkConfigCmd struct {
	File string `arg:"" help:"Configuration file (YAML)."`
}

func (*checkConfigCmd) Help() string {
	return "Reads the file strictly: an unknown key or a bad value is an error that says where it is and what would be right. " +
		"Prints the whole configuration, defaults included and secrets left out."
}

func (c *checkConfigCmd) Run(e *env) error {
	cfg, err := config.Load(c.File)
	if err != nil {
		return err
	}
	text, err := yaml.Marshal(cfg.Redacted())
	if err != nil {
		return fmt.Errorf("print the configuration: %w", err)
	}
	_, err = e.stdout.Write(text)
	return err
}
