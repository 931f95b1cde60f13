-- Hourly counts, for charts and the catalogue of events seen.
CREATE TABLE IF NOT EXISTS audit_event_counts
(
    organization LowCardinality(String),
    trail        LowCardinality(String),
    hour         DateTime('UTC'),
    source       LowCardinality(String),
    event        LowCardinality(String),
    action       LowCardinality(String),
    outcome      LowCardinality(String),
    events       UInt64,
    expires_at   SimpleAggregateFunction(max, DateTime('UTC'))
)
ENGINE = SummingMergeTree(events)
PARTITION BY toYYYYMM(hour)
ORDER BY (organization, trail, hour, source, event, action, outcome)
TTL expires_at
SETTINGS non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS audit_event_counts_view TO audit_event_counts AS
SELECT organization, trail, toStartOfHour(recorded_at) AS hour, source, event, action, outcome,
       count() AS events, max(expires_at) AS expires_at
FROM audit_events
GROUP BY organization, trail, hour, source, event, action, outcome;
