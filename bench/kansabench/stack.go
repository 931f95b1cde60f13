package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/store"
)

// stack is what one measurement runs on: fresh processes in a fresh directory.
type stack struct {
	b       *bench
	name    string // of the measurement
	dir     string
	engine  *engine.Engine
	store   *store.Store // this process's own connection, to look at what is stored
	broker  *process
	writer  *process
	started []*process // in the order of their start
}

func (b *bench) newStack(name string) (*stack, error) {
	// What earlier measurements wrote must not be in the way of this one's fsyncs.
	unix.Sync()
	dir, err := os.MkdirTemp(b.dir, name+"-")
	if err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	return &stack{b: b, name: name, dir: dir}, nil
}

// close ends what was started, last first, and removes its files.
func (s *stack) close() error {
	var errs []error
	for i := len(s.started) - 1; i >= 0; i-- {
		errs = append(errs, s.started[i].stop())
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	if s.engine != nil {
		errs = append(errs, s.engine.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

func (s *stack) start(ctx context.Context, part string, settings any) (*process, error) {
	p, err := s.b.start(ctx, s.name, part, settings)
	if err == nil {
		s.started = append(s.started, p)
	}
	return p, err
}

func (s *stack) startBroker(ctx context.Context) (err error) {
	s.broker, err = s.start(ctx, "broker", brokerSettings{Dir: filepath.Join(s.dir, "nats")})
	return err
}

// startEngine starts the engine with its tables.
func (s *stack) startEngine(ctx context.Context) (err error) {
	command := []string{s.b.self, "part", "engine"}
	if s.b.Pprof != "" {
		command = append(command, "--profile", filepath.Join(s.b.Pprof, s.name+"-engine"))
	}
	s.engine, err = engine.Start(ctx, engine.Options{Dir: filepath.Join(s.dir, "clickhouse"), Command: command, Logger: warnings()})
	if err != nil {
		return err
	}
	if s.store, err = s.settings().open(ctx); err != nil {
		return err
	}
	if err := s.store.Migrate(ctx); err != nil {
		return err
	}
	if s.b.result.Machine.ClickHouse == "" {
		if err := s.store.Conn().QueryRow(ctx, "SELECT version()").Scan(&s.b.result.Machine.ClickHouse); err != nil {
			return fmt.Errorf("ask the engine for its version: %w", err)
		}
	}
	return nil
}

func (s *stack) settings() storeSettings {
	return storeSettings{URL: s.engine.URL(), Username: s.engine.Username(), Password: s.engine.Password()}
}

func (s *stack) startWriter(ctx context.Context) (err error) {
	s.writer, err = s.start(ctx, "writer", writerSettings{Broker: s.broker.now().URL, Store: s.settings()})
	return err
}

// startAll starts broker, engine and writer.
func (s *stack) startAll(ctx context.Context) error {
	if err := s.startBroker(ctx); err != nil {
		return err
	}
	if err := s.startEngine(ctx); err != nil {
		return err
	}
	return s.startWriter(ctx)
}

// machineUsage stands for everybody on the machine among usages.
const machineUsage = "machine"

// usages is what each process has used so far.
func (s *stack) usages() map[string]usage {
	all := map[string]usage{}
	for _, p := range s.started {
		all[p.name] = p.usage()
	}
	if s.engine != nil {
		all["engine"] = usageOf(s.engine.PID())
	}
	all[machineUsage] = usage{CPU: busyCores()}
	return all
}

// rows is how many the table holds.
func (s *stack) rows(ctx context.Context) (n uint64, err error) {
	if err := s.store.Conn().QueryRow(ctx, "SELECT count() FROM audit_events").Scan(&n); err != nil {
		return 0, fmt.Errorf("count the rows: %w", err)
	}
	return n, nil
}
