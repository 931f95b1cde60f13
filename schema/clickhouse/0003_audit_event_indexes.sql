-- Indexes for rare values: a granule that does not have one is not read. Merges make them, at a twentieth of a merge
-- for each, and inserts do not (materialize_skip_indexes_on_insert): two cost those a quarter. Parts that were
-- there before get theirs when they are merged; until then they are read as they were.
--
-- Text has none: one of n-grams costs two microseconds an event in each merge, and the merge itself one.
ALTER TABLE {{local "audit_events"}}{{.OnCluster}} ADD INDEX IF NOT EXISTS by_id id TYPE bloom_filter(0.01) GRANULARITY 1;
ALTER TABLE {{local "audit_events"}}{{.OnCluster}} ADD INDEX IF NOT EXISTS by_actor actor_id TYPE bloom_filter(0.01) GRANULARITY 1;
ALTER TABLE {{local "audit_events"}}{{.OnCluster}} ADD INDEX IF NOT EXISTS by_target target_id TYPE bloom_filter(0.01) GRANULARITY 1;
ALTER TABLE {{local "audit_events"}}{{.OnCluster}} ADD INDEX IF NOT EXISTS by_app app_id TYPE bloom_filter(0.01) GRANULARITY 1;
ALTER TABLE {{local "audit_events"}}{{.OnCluster}} ADD INDEX IF NOT EXISTS by_ip ip TYPE bloom_filter(0.01) GRANULARITY 1;
