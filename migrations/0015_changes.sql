-- A write of content ends no jobs: what it changes is pending anew within the
-- job that covers it. Whoever writes results sees by the count of changes
-- whether it looked at the chunks before such a write or after it.
ALTER TABLE weir.jobs
    ADD COLUMN changes integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT jobs_changes_not_negative CHECK (changes >= 0) NOT VALID,
    -- A job may lose all of its chunks.
    DROP CONSTRAINT jobs_counts_add_up,
    ADD CONSTRAINT jobs_counts_add_up
        CHECK (chunks_done >= 0 AND chunks_rejected >= 0 AND chunks_done + chunks_rejected <= chunks_total) NOT VALID;
COMMENT ON COLUMN weir.jobs.changes IS
    'Writes that changed chunks of its range since it was last claimed. With epoch it is the version of what its results are compared with.';
COMMENT ON COLUMN weir.jobs.chunks_total IS
    'Chunks that it has embedded, rejected or still to embed: those that were pending when it was planned, and what writes added to them or took away.';
COMMENT ON COLUMN weir.jobs.chunks_done IS 'Chunks of its range that it embedded.';
COMMENT ON COLUMN weir.jobs.chunks_rejected IS 'Chunks of its range that it rejected.';
