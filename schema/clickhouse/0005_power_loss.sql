-- What is inserted and merged survives a power cut: ClickHouse syncs it only with these settings. A merge's sources stay for eight
-- minutes, as on a server; the embedded engine removes them at once by default (old_parts_lifetime = 0).
--
-- The counts are synced, too: after a power cut that left more than a hundred broken parts, the engine does not start.
ALTER TABLE {{local "audit_events"}}{{.OnCluster}} MODIFY SETTING
    min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1, old_parts_lifetime = 480;
ALTER TABLE {{local "audit_event_counts"}}{{.OnCluster}} MODIFY SETTING fsync_after_insert = 1, fsync_part_directory = 1,
    min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1, old_parts_lifetime = 480;
