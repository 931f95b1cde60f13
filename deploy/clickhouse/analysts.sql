-- Analysts: they read, and each sees one organization. Run it as the user kansa after Kansa's first start, and again for each
-- organization; every statement is harmless when repeated:
--   clickhouse-client --user kansa --password … --multiquery < analysts.sql

-- What every analyst may do. The limits can't be changed by who is limited.
CREATE SETTINGS PROFILE IF NOT EXISTS kansa_analyst SETTINGS
    readonly = 1 CONST,
    max_execution_time = 300 MAX 300,
    max_memory_usage = 4000000000 MAX 4000000000,
    max_result_rows = 1000000 MAX 1000000,
    result_overflow_mode = 'break' CONST;

CREATE ROLE IF NOT EXISTS kansa_analyst SETTINGS PROFILE 'kansa_analyst';
GRANT SELECT ON kansa.audit_events TO kansa_analyst;
GRANT SELECT ON kansa.audit_event_counts TO kansa_analyst;

-- Kansa itself sees everything: a table with a policy shows nothing to those whom none names.
CREATE ROW POLICY IF NOT EXISTS kansa_all ON kansa.audit_events, kansa.audit_event_counts
    FOR SELECT USING 1 TO kansa;

-- One organization: a role, what it sees, and a user. Copy it for each, with another name.
CREATE ROLE IF NOT EXISTS kansa_acme;
GRANT kansa_analyst TO kansa_acme;
CREATE ROW POLICY IF NOT EXISTS kansa_acme ON kansa.audit_events, kansa.audit_event_counts
    FOR SELECT USING organization = 'acme' AS PERMISSIVE TO kansa_acme;
CREATE USER IF NOT EXISTS acme_analyst IDENTIFIED WITH sha256_password BY 'change me' HOST ANY
    DEFAULT ROLE kansa_acme;
GRANT kansa_acme TO acme_analyst;
