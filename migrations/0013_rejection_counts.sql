-- How many chunks of a source stand rejected, and since when, without reading
-- the rejections. Who writes results holds the rows of jobs and never that of a
-- source, so each job counts in a row of its own; whoever holds the source and
-- its unsettled jobs makes one of them.
CREATE TABLE weir.rejection_counts (
    source_id bigint NOT NULL,
    job_id    bigint NOT NULL,
    chunks    bigint NOT NULL,
    CONSTRAINT rejection_counts_pkey PRIMARY KEY (source_id, job_id),
    CONSTRAINT rejection_counts_positive CHECK (chunks > 0)
);
COMMENT ON TABLE weir.rejection_counts IS
    'Rows of weir.rejections of a source: the sum over its rows here. A row is written by whoever holds the lock of '
    'its job, or that of the source with all its unsettled jobs.';
COMMENT ON COLUMN weir.rejection_counts.source_id IS 'weir.sources.id.';
COMMENT ON COLUMN weir.rejection_counts.job_id IS 'weir.jobs.id of the job that rejected them; 0 where several were summed up.';
COMMENT ON COLUMN weir.rejection_counts.chunks IS 'How many.';

INSERT INTO weir.rejection_counts (source_id, job_id, chunks)
SELECT source_id, 0, count(*) FROM weir.rejections GROUP BY source_id;

CREATE INDEX rejections_age ON weir.rejections (source_id, rejected_at);
COMMENT ON INDEX weir.rejections_age IS 'The first and the last rejection of a source.';
