-- What keeps sources and the queue in order: jobs that failed wait and are
-- queued again, sources are compared with their vectors, and old jobs go.

ALTER TABLE weir.jobs
    ADD COLUMN parkings smallint NOT NULL DEFAULT 0,
    ADD CONSTRAINT jobs_parkings_not_negative CHECK (parkings >= 0);
COMMENT ON COLUMN weir.jobs.parkings IS 'Jobs before this one that failed over the same chunks, one after the other, since a client last wrote or retried them.';
COMMENT ON COLUMN weir.jobs.run_at IS 'Not to be claimed before; a retry is queued with a future run_at. Of a failed job that is not settled: when the reconciler queues what it left pending.';

ALTER TABLE weir.sources ADD COLUMN checked_at timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN weir.sources.checked_at IS 'When the reconciler last compared the source with its vectors, or when the source was first put.';
-- Those that are there already take their turns over the next hour.
UPDATE weir.sources SET checked_at = now() - random() * interval '1 hour';

CREATE INDEX sources_checked ON weir.sources (checked_at);
COMMENT ON INDEX weir.sources_checked IS 'The reconciler''s round.';
CREATE INDEX jobs_parked ON weir.jobs (run_at) WHERE state = 'failed' AND NOT settled;
COMMENT ON INDEX weir.jobs_parked IS 'Failed jobs whose chunks are to be queued again, in the order of their time.';
CREATE INDEX jobs_settled ON weir.jobs (finished_at) WHERE settled;
COMMENT ON INDEX weir.jobs_settled IS 'History, oldest first: what retention deletes.';
