package pipeline

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/pipeline/analyst"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/schema"
)

// analystPause is how long a connection to the broker or the engine's process may be gone before
// the accounts are followed again.
const analystPause = 200 * time.Millisecond

// analysts begins what makes accounts work: the verbs, and, with the embedded engine, its readers
// and the records of their queries.
func (s *System) analysts() {
	desk := &analyst.Desk{
		Store: &analyst.Store{KV: s.Access.KV}, Database: s.Config.ClickHouse.Database, Address: s.Config.Redacted().ClickHouse.URL, Record: s.own.Record, Logger: s.log.With(slog.String("part", "analysts")),
	}
	if e := s.Engine; e != nil {
		desk.Queries, desk.Address = e, e.URL()
		s.roles.Go(func() error {
			return s.again("following the analysts again", func(ctx context.Context) error { return s.followAnalysts(ctx, desk.Store) })
		})
		repeated := rate.New(1, time.Minute, 1, time.Now)
		s.roles.Go(func() error {
			return s.again("fetching the records of analysts' queries again", func(ctx context.Context) error { return s.recordQueries(ctx, desk.Store, repeated) })
		})
	} else {
		desk.Server = &analyst.Server{Conn: s.Store.Conn(), Database: s.Config.ClickHouse.Database, Cluster: s.Config.ClickHouse.Cluster, Limits: readerLimits(s.Config.ClickHouse.Analysts)}
	}
	s.roles.Go(func() error { return desk.Serve(s.ended, s.Client.NC) })
}

// again runs something until the system ends.
func (s *System) again(what string, run func(context.Context) error) error {
	for s.ended.Err() == nil {
		err := run(s.ended)
		if s.ended.Err() != nil {
			break
		}
		s.log.Warn(what, slog.Any("error", err))
		select {
		case <-s.ended.Done():
		case <-time.After(analystPause):
		}
	}
	return nil
}

func (s *System) followAnalysts(ctx context.Context, store *analyst.Store) error {
	return store.Follow(ctx, func(all []analyst.Account) error {
		readers := make([]engine.Reader, 0, len(all))
		for i := range all {
			readers = append(readers, s.readerOf(&all[i]))
		}
		if err := s.Engine.SetReaders(ctx, readers); err != nil {
			return fmt.Errorf("set the analysts of the engine: %w", err)
		}
		return nil
	})
}

// readerOf is what an analyst is to the engine.
func (s *System) readerOf(a *analyst.Account) engine.Reader {
	r := engine.Reader{
		ID: a.ID, Username: a.Username, Digest: a.Digest, Until: a.Expires, Database: s.Config.ClickHouse.Database, Tables: map[string]string{},
		Group: a.Organization, Limits: readerLimits(s.Config.ClickHouse.Analysts),
	}
	for _, t := range analyst.Tables {
		r.Tables[t] = analyst.Filter(a.Organization)
	}
	return r
}

func readerLimits(c config.Analysts) engine.ReaderLimits {
	return engine.ReaderLimits{
		ExecutionTime: c.MaxExecutionTime, Memory: c.MaxMemory, ResultRows: c.MaxResultRows, RowsToRead: c.MaxRowsToRead,
		Queries: c.Queries, GroupQueries: c.OrganizationQueries, QueriesPerMinute: c.QueriesPerMinute,
	}
}

// statementBytes is how much of a statement an event has.
const statementBytes = 2000

// recordQueries makes an event of each query that an analyst ran.
func (s *System) recordQueries(ctx context.Context, store *analyst.Store, repeated *rate.Limiter) error {
	organizations := map[string]string{} // by the id of the account
	for {
		all, err := s.Engine.FinishedQueries(ctx)
		if err != nil {
			return err
		}
		unknown := func(f engine.FinishedQuery) bool { _, ok := organizations[f.ReaderID]; return !ok }
		if slices.ContainsFunc(all, unknown) {
			accounts, err := store.List(ctx, "")
			if err != nil {
				s.log.Warn("look up whose queries were run; their events go to the operator's trail", slog.Any("error", err))
			}
			for i := range accounts {
				organizations[accounts[i].ID] = accounts[i].Organization
			}
		}
		for i := range all {
			f := &all[i]
			organization, ok := organizations[f.ReaderID]
			if !ok { // the account is gone; its name says whose it was
				organization, _, _ = strings.Cut(f.Username, ".")
				if organization == f.Username {
					organization = ""
				}
			}
			same := sha256.Sum256([]byte(f.Query + "\x00" + strconv.Itoa(f.Code)))
			if wait, _ := repeated.Take(f.ReaderID + string(same[:])); wait > 0 {
				continue
			}
			s.own.Record(ctx, queryEvent(f, organization))
		}
	}
}

func queryEvent(f *engine.FinishedQuery, organization string) schema.Event {
	e := schema.Event{
		Organization: organization, Trail: schema.Access, Event: "analyst.query", Action: "read", Outcome: schema.Success,
		Actor: schema.Actor{Type: "analyst", ID: f.Username}, Target: schema.Target{Type: "query", ID: strings.ToValidUTF8(f.QueryID[:min(len(f.QueryID), 200)], "")},
		Description: f.Error, Context: schema.Context{IP: f.Address},
		Attributes: map[string]string{
			"statement": cmp.Or(strings.ToValidUTF8(f.Query[:min(len(f.Query), statementBytes)], ""), "-"), "rows": strconv.FormatUint(f.Rows, 10),
			"duration_ms": strconv.FormatInt(f.Duration.Milliseconds(), 10),
		},
	}
	switch {
	case f.Code == 0:
	case f.Refused():
		e.Outcome = schema.Denied
	default:
		e.Outcome = schema.Failure
	}
	if f.Code != 0 {
		e.Attributes["code"] = strconv.Itoa(f.Code)
	}
	return e
}
