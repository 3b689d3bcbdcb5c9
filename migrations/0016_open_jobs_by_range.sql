-- no-transaction
-- The open job that covers an item is found by where its range begins, however
-- many jobs its source has.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_unsettled_by_range
    ON weir.jobs (source_id, (state IN ('queued', 'running')), first_item_id) WHERE NOT settled;
COMMENT ON INDEX weir.jobs_unsettled_by_range IS 'A source''s open jobs by their range, and those that left chunks pending.';
DROP INDEX CONCURRENTLY IF EXISTS weir.jobs_unsettled;
