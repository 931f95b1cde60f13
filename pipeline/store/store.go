package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/kansa-audit/kansa/pipeline/engine"
	migrations "github.com/kansa-audit/kansa/schema/clickhouse"
)

// Options say how to reach ClickHouse.
type Options struct {
	// URL is http://, https:// or clickhouse:// (the native protocol; clickhouses:// or ?secure=true
	// with TLS), with host, port and, if not given below, user and password. Its path is the database.
	// Several, separated by commas, are ways to the same data, of which the first that answers is used: what is
	// stored by one has to be seen by the others at once, or what was stored would be stored again.
	URL          string
	Username     string
	Password     string
	PasswordFile string
	Database     string // default kansa
	CAFile       string
	// Cluster is a name of system.clusters, on whose servers the tables are made; empty for one server.
	Cluster string
	// MaxConnections bounds those open at once for writing and for the system, and again those for reads on behalf of
	// people; default 16.
	MaxConnections int
	Logger         *slog.Logger
}

// Store is audit_events and its companions. It is safe for concurrent use.
type Store struct {
	conn     driver.Conn
	reads    driver.Conn // of reads on behalf of people, who may hold connections for long
	native   bool        // the native protocol
	inserts  class
	database string
	tables   migrations.Tables
	log      *slog.Logger
}

// Open connects, and creates the database if it is not there.
func Open(ctx context.Context, o Options) (*Store, error) {
	opt, err := options(o)
	if err != nil {
		return nil, err
	}
	tables := migrations.Tables{Cluster: o.Cluster}
	database := opt.Auth.Database
	opt.Auth.Database = "" // it may not be there yet
	first, err := clickhouse.Open(opt)
	if err != nil {
		return nil, fmt.Errorf("open ClickHouse: %w", err)
	}
	err = first.Exec(ctx, "CREATE DATABASE IF NOT EXISTS "+migrations.Quote(database)+tables.OnCluster())
	if closeErr := first.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, fmt.Errorf("create database %s at %s: %w", database, strings.Join(opt.Addr, ","), err)
	}
	opt.Auth.Database = database
	conn, err := clickhouse.Open(opt)
	if err != nil {
		return nil, fmt.Errorf("open ClickHouse: %w", err)
	}
	forReads := *opt
	forReads.HttpHeaders = map[string]string{engine.PurposeHeader: engine.PurposeRead}
	reads, err := clickhouse.Open(&forReads)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open ClickHouse: %w", err), conn.Close())
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Store{conn: conn, reads: reads, native: opt.Protocol == clickhouse.Native, database: database, tables: tables, log: log}, nil
}

// Close closes the connections.
func (s *Store) Close() error { return errors.Join(s.conn.Close(), s.reads.Close()) }

// Ping reports whether ClickHouse answers.
func (s *Store) Ping(ctx context.Context) error { return s.conn.Ping(ctx) }

// Conn is the connection, for queries that are no business of this package: those of analysts and tests.
func (s *Store) Conn() driver.Conn { return s.conn }

func options(o Options) (*clickhouse.Options, error) {
	opt := &clickhouse.Options{
		Settings:     clusterSettings(o.Cluster),
		MaxOpenConns: 16, MaxIdleConns: 8, DialTimeout: 10 * time.Second, ReadTimeout: 5 * time.Minute,
		Auth: clickhouse.Auth{Username: o.Username, Password: o.Password, Database: o.Database},
	}
	var u *url.URL
	secure := false
	for n, text := range strings.Split(o.URL, ",") {
		next, err := url.Parse(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("clickhouse.url: %w", errors.Unwrap(err))
		}
		protocol, tls, err := protocolOf(next)
		if err != nil {
			return nil, err
		}
		if n > 0 && (protocol != opt.Protocol || tls != secure) {
			return nil, fmt.Errorf("clickhouse.url names %q beside %q: give all the same scheme", next.Redacted(), u.Redacted())
		}
		if n == 0 {
			u, opt.Protocol, secure = next, protocol, tls
		}
		host := next.Host
		if next.Port() == "" {
			host += ":" + defaultPort(protocol, tls)
		}
		opt.Addr = append(opt.Addr, host)
	}
	if len(opt.Addr) > 1 {
		opt.DialStrategy = (&endpoints{}).dial
	}
	if o.MaxConnections > 0 {
		opt.MaxOpenConns, opt.MaxIdleConns = o.MaxConnections, o.MaxConnections
	}
	if opt.Auth.Username == "" {
		opt.Auth.Username = u.User.Username()
	}
	if opt.Auth.Password == "" {
		opt.Auth.Password, _ = u.User.Password()
	}
	if o.PasswordFile != "" {
		secret, err := os.ReadFile(o.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("read clickhouse.password_file: %w", err)
		}
		opt.Auth.Password = strings.TrimRight(string(secret), "\r\n")
	}
	if opt.Auth.Database == "" {
		opt.Auth.Database = strings.Trim(u.Path, "/")
	}
	if opt.Auth.Database == "" {
		opt.Auth.Database = "kansa"
	}
	if secure {
		opt.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		if o.CAFile != "" {
			pem, err := os.ReadFile(o.CAFile)
			if err != nil {
				return nil, fmt.Errorf("read clickhouse.ca_file: %w", err)
			}
			opt.TLS.RootCAs = x509.NewCertPool()
			if !opt.TLS.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("clickhouse.ca_file %s holds no certificate: give a PEM file", o.CAFile)
			}
		}
	}
	return opt, nil
}

// protocolOf reads a URL's scheme.
func protocolOf(u *url.URL) (p clickhouse.Protocol, secure bool, err error) {
	secure = u.Query().Get("secure") == "true"
	switch u.Scheme {
	case "http":
		p = clickhouse.HTTP
	case "https":
		p, secure = clickhouse.HTTP, true
	case "clickhouse", "tcp":
		p = clickhouse.Native
	case "clickhouses":
		p, secure = clickhouse.Native, true
	default:
		return p, false, fmt.Errorf("clickhouse.url %q: the scheme is not known: use http://, https:// or clickhouse://", u.Redacted())
	}
	if u.Host == "" {
		return p, false, fmt.Errorf("clickhouse.url %q names no host: write http://host:8123 or clickhouse://host:9000", u.Redacted())
	}
	return p, secure, nil
}

func defaultPort(p clickhouse.Protocol, secure bool) string {
	switch {
	case p == clickhouse.HTTP && secure:
		return "8443"
	case p == clickhouse.HTTP:
		return "8123"
	case secure:
		return "9440"
	default:
		return "9000"
	}
}
