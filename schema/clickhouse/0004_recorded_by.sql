-- The credential that published an event, which no publisher can set: see schema.HeaderRecordedBy.
ALTER TABLE {{local "audit_events"}}{{.OnCluster}} ADD COLUMN IF NOT EXISTS recorded_by LowCardinality(String) AFTER trail;

{{if .Cluster}}ALTER TABLE audit_events{{.OnCluster}} ADD COLUMN IF NOT EXISTS recorded_by LowCardinality(String) AFTER trail;{{end}}
