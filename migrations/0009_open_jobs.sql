-- Lists of what waits or runs are found without walking the history, however
-- long it is. A renewal changes neither column, and so stays HOT.

CREATE INDEX jobs_open ON weir.jobs (id) WHERE state IN ('queued', 'running');
COMMENT ON INDEX weir.jobs_open IS 'What waits or runs.';
