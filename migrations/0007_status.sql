-- What operators ask of the queue: who tried a job and how that ended, what
-- keeps going wrong and since when, and how much was done over the last hour.

ALTER TABLE weir.jobs
    ADD COLUMN claimed_done  integer NOT NULL DEFAULT 0,
    ADD COLUMN embedder_down boolean NOT NULL DEFAULT false,
    ADD COLUMN failure_id    bigint,
    -- A job that succeeded says who did it, and from when on.
    DROP CONSTRAINT jobs_lease_exactly_while_running,
    ADD CONSTRAINT jobs_lease_exactly_while_running
        CHECK ((state = 'running') = (lease_expires_at IS NOT NULL)),
    ADD CONSTRAINT jobs_claimed_while_running_or_succeeded
        CHECK (CASE state WHEN 'running' THEN worker_id IS NOT NULL AND claimed_at IS NOT NULL
                          WHEN 'succeeded' THEN (worker_id IS NULL) = (claimed_at IS NULL)
                          ELSE worker_id IS NULL AND claimed_at IS NULL END),
    ADD CONSTRAINT jobs_embedder_down_while_queued CHECK (state = 'queued' OR NOT embedder_down);
COMMENT ON COLUMN weir.jobs.worker_id IS 'While running: who holds the lease. Once succeeded: who held it last.';
COMMENT ON COLUMN weir.jobs.claimed_at IS 'While running: when the lease began. Once succeeded: when the last one did.';
COMMENT ON COLUMN weir.jobs.claimed_done IS 'Chunks embedded or rejected when the present lease, or the last one, began.';
COMMENT ON COLUMN weir.jobs.embedder_down IS 'Queued, because the worker that had it handed it back for want of an embedder.';
COMMENT ON COLUMN weir.jobs.failure_id IS 'weir.failures.id that last_error was counted under; null when nothing went wrong.';

CREATE INDEX jobs_of_failure ON weir.jobs (failure_id, id) WHERE NOT settled AND failure_id IS NOT NULL;
CREATE INDEX jobs_ended_badly ON weir.jobs (id) WHERE state IN ('failed', 'cancelled');
COMMENT ON INDEX weir.jobs_of_failure IS 'What stands still because of a failure.';
COMMENT ON INDEX weir.jobs_ended_badly IS 'The history of what did not succeed.';

CREATE TABLE weir.attempts (
    job_id      bigint      NOT NULL,
    epoch       bigint      NOT NULL,
    started_at  timestamptz NOT NULL,
    ended_at    timestamptz NOT NULL DEFAULT now(),
    chunks_done integer     NOT NULL,
    charged     boolean     NOT NULL,
    outcome     text        NOT NULL,
    worker_id   text        NOT NULL,
    error       text,
    CONSTRAINT attempts_pkey PRIMARY KEY (job_id, epoch),
    CONSTRAINT attempts_outcome_known
        CHECK (outcome IN ('released', 'failed', 'expired', 'no_progress', 'cancelled')),
    CONSTRAINT attempts_chunks_done_not_negative CHECK (chunks_done >= 0)
);
COMMENT ON TABLE weir.attempts IS 'Leases that ended before their job had succeeded. The present one, and the one that succeeded, are read off weir.jobs.';
COMMENT ON COLUMN weir.attempts.job_id IS 'weir.jobs.id.';
COMMENT ON COLUMN weir.attempts.epoch IS 'The epoch that the job was claimed at.';
COMMENT ON COLUMN weir.attempts.started_at IS 'When it was claimed.';
COMMENT ON COLUMN weir.attempts.ended_at IS 'When the lease ended.';
COMMENT ON COLUMN weir.attempts.chunks_done IS 'Chunks embedded or rejected under it.';
COMMENT ON COLUMN weir.attempts.charged IS 'Whether it was charged against the attempts of the job.';
COMMENT ON COLUMN weir.attempts.outcome IS 'released, failed, expired, no_progress or cancelled.';
COMMENT ON COLUMN weir.attempts.worker_id IS 'Who held the lease.';
COMMENT ON COLUMN weir.attempts.error IS 'Why it ended, in words for a person.';

CREATE TABLE weir.failures (
    id             bigint      GENERATED ALWAYS AS IDENTITY,
    last_job_id    bigint      NOT NULL,
    occurrences    bigint      NOT NULL DEFAULT 1,
    first_seen_at  timestamptz NOT NULL DEFAULT now(),
    last_seen_at   timestamptz NOT NULL DEFAULT now(),
    dismissed_at   timestamptz,
    namespace      text        COLLATE "C" NOT NULL,
    model          text        NOT NULL,
    cause          text        NOT NULL,
    last_source    text        COLLATE "C" NOT NULL,
    last_error     text        NOT NULL,
    CONSTRAINT failures_pkey PRIMARY KEY (id),
    CONSTRAINT failures_cause_key UNIQUE (namespace, model, cause),
    CONSTRAINT failures_occurred CHECK (occurrences > 0)
);
COMMENT ON TABLE weir.failures IS 'What went wrong with jobs, by cause. Counted in the transaction that takes the job back, after all other locks.';
COMMENT ON COLUMN weir.failures.id IS 'The id.';
COMMENT ON COLUMN weir.failures.last_job_id IS 'The job it last befell.';
COMMENT ON COLUMN weir.failures.occurrences IS 'How often it was seen.';
COMMENT ON COLUMN weir.failures.first_seen_at IS 'When it was first seen.';
COMMENT ON COLUMN weir.failures.last_seen_at IS 'When it was last seen.';
COMMENT ON COLUMN weir.failures.dismissed_at IS 'When a client dismissed it; null when none has since it was last seen.';
COMMENT ON COLUMN weir.failures.namespace IS 'The namespace of the jobs.';
COMMENT ON COLUMN weir.failures.model IS 'The model of the jobs.';
COMMENT ON COLUMN weir.failures.cause IS 'The error without what differs from one to the next.';
COMMENT ON COLUMN weir.failures.last_source IS 'The source of the job it last befell.';
COMMENT ON COLUMN weir.failures.last_error IS 'The error as it last was.';
CREATE INDEX failures_seen ON weir.failures (last_seen_at DESC, id DESC);
COMMENT ON INDEX weir.failures_seen IS 'Last seen first.';

CREATE UNLOGGED TABLE weir.samples (
    at                       timestamptz      NOT NULL,
    replica                  text             NOT NULL,
    chunks_embedded          bigint           NOT NULL,
    chunks_rejected          bigint           NOT NULL,
    chunks_pending           bigint           NOT NULL,
    oldest_ready_age_seconds double precision NOT NULL,
    CONSTRAINT samples_pkey PRIMARY KEY (at, replica)
);
COMMENT ON TABLE weir.samples IS 'What each replica persisted over a few seconds, and how much waited; kept for little more than an hour.';
COMMENT ON COLUMN weir.samples.at IS 'The end of the interval.';
COMMENT ON COLUMN weir.samples.replica IS 'A name that the coordinator drew when it started.';
COMMENT ON COLUMN weir.samples.chunks_embedded IS 'Chunks that this replica persisted vectors of.';
COMMENT ON COLUMN weir.samples.chunks_rejected IS 'Chunks that this replica persisted rejections of.';
COMMENT ON COLUMN weir.samples.chunks_pending IS 'Chunks pending in open jobs at the end.';
COMMENT ON COLUMN weir.samples.oldest_ready_age_seconds IS 'Age of the oldest job that could be claimed at the end.';

-- The history of a source outlives it, and so is found by its name.
DROP INDEX weir.jobs_of_source;
CREATE INDEX jobs_of_source ON weir.jobs (namespace, source, id);
COMMENT ON INDEX weir.jobs_of_source IS 'A source''s history.';
