-- Hourly counts, for charts and the catalogue of events seen.
CREATE TABLE IF NOT EXISTS {{local "audit_event_counts"}}{{.OnCluster}}
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
ENGINE = {{engine "SummingMergeTree" "audit_event_counts" "events"}}
PARTITION BY toYYYYMM(hour)
ORDER BY (organization, trail, hour, source, event, action, outcome)
TTL expires_at
SETTINGS {{.Window}} = 10000;

{{distributed "audit_event_counts" "rand()"}}

CREATE MATERIALIZED VIEW IF NOT EXISTS audit_event_counts_view{{.OnCluster}} TO {{local "audit_event_counts"}} AS
SELECT organization, trail, toStartOfHour(recorded_at) AS hour, source, event, action, outcome,
       count() AS events, max(expires_at) AS expires_at
FROM {{local "audit_events"}}
GROUP BY organization, trail, hour, source, event, action, outcome;
