-- The queue, and the history of what went through it.

CREATE TABLE weir.jobs (
    id               bigint      GENERATED ALWAYS AS IDENTITY,
    source_id        bigint      NOT NULL,
    epoch            bigint      NOT NULL DEFAULT 0,
    revision         bigint      NOT NULL,
    run_at           timestamptz NOT NULL DEFAULT now(),
    lease_expires_at timestamptz,
    claimed_at       timestamptz,
    progressed_at    timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    started_at       timestamptz,
    finished_at      timestamptz,
    chunks_total     integer     NOT NULL,
    chunks_done      integer     NOT NULL DEFAULT 0,
    chunks_rejected  integer     NOT NULL DEFAULT 0,
    priority         smallint    NOT NULL DEFAULT 0,
    attempt          smallint    NOT NULL DEFAULT 0,
    settled          boolean     NOT NULL DEFAULT false,
    state            text        NOT NULL DEFAULT 'queued',
    trigger          text        NOT NULL,
    namespace        text        COLLATE "C" NOT NULL,
    source           text        COLLATE "C" NOT NULL,
    model            text        NOT NULL,
    first_item_id    text        COLLATE "C" NOT NULL,
    last_item_id     text        COLLATE "C" NOT NULL,
    worker_id        text,
    revoke_reason    text,
    last_error       text,
    traceparent      text,
    CONSTRAINT jobs_pkey PRIMARY KEY (id),
    CONSTRAINT jobs_state_known
        CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    CONSTRAINT jobs_trigger_known
        CHECK (trigger IN ('write', 'retry', 'reconcile')),
    CONSTRAINT jobs_revoke_reason_known
        CHECK (revoke_reason IN ('lease_lost', 'cancelled', 'superseded', 'source_deleted', 'no_progress')),
    CONSTRAINT jobs_lease_exactly_while_running
        CHECK ((state = 'running') = (lease_expires_at IS NOT NULL)
           AND (state = 'running') = (worker_id IS NOT NULL)
           AND (state = 'running') = (claimed_at IS NOT NULL)),
    CONSTRAINT jobs_finished_exactly_in_a_final_state
        CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT jobs_counts_add_up
        CHECK (chunks_total > 0 AND chunks_done >= 0 AND chunks_rejected >= 0
           AND chunks_done + chunks_rejected <= chunks_total),
    CONSTRAINT jobs_succeeded_is_whole
        CHECK (state <> 'succeeded' OR chunks_done + chunks_rejected = chunks_total),
    CONSTRAINT jobs_open_is_not_settled
        CHECK (NOT settled OR state NOT IN ('queued', 'running')),
    CONSTRAINT jobs_succeeded_is_settled
        CHECK (settled OR state <> 'succeeded'),
    CONSTRAINT jobs_range_in_order CHECK (first_item_id <= last_item_id),
    CONSTRAINT jobs_priority_range CHECK (priority BETWEEN 0 AND 9),
    CONSTRAINT jobs_attempt_not_negative CHECK (attempt >= 0),
    CONSTRAINT jobs_epoch_not_negative CHECK (epoch >= 0)
) WITH (
    -- Renewals rewrite a running job's row every few seconds; room on its page
    -- keeps them HOT, touching no index.
    fillfactor = 70
);
COMMENT ON TABLE weir.jobs IS 'The queue and its history. A job is one pass that embeds the pending chunks of a range of a source''s items.';
COMMENT ON COLUMN weir.jobs.id IS 'Rises with every job.';
COMMENT ON COLUMN weir.jobs.source_id IS 'weir.sources.id; the job outlives a deleted source.';
COMMENT ON COLUMN weir.jobs.epoch IS 'The fencing token: rises at every claim and every revocation. Every write of a worker names it.';
COMMENT ON COLUMN weir.jobs.revision IS 'The source''s revision when the job was planned.';
COMMENT ON COLUMN weir.jobs.run_at IS 'Not to be claimed before; a retry is queued with a future run_at.';
COMMENT ON COLUMN weir.jobs.lease_expires_at IS 'While running: when the lease ends unless renewed, by the clock of this database and no other.';
COMMENT ON COLUMN weir.jobs.claimed_at IS 'While running: when the lease began.';
COMMENT ON COLUMN weir.jobs.progressed_at IS 'When a batch was last persisted under the present lease, or the last one; null when none was.';
COMMENT ON COLUMN weir.jobs.created_at IS 'When the job was planned.';
COMMENT ON COLUMN weir.jobs.started_at IS 'When it was claimed first.';
COMMENT ON COLUMN weir.jobs.finished_at IS 'When it reached a final state.';
COMMENT ON COLUMN weir.jobs.chunks_total IS 'Pending chunks of the range when the job was planned.';
COMMENT ON COLUMN weir.jobs.chunks_done IS 'Of these, embedded by now.';
COMMENT ON COLUMN weir.jobs.chunks_rejected IS 'Of these, rejected by now.';
COMMENT ON COLUMN weir.jobs.priority IS 'Higher is claimed first, 0 to 9.';
COMMENT ON COLUMN weir.jobs.attempt IS 'Tries charged since the job last moved forward.';
COMMENT ON COLUMN weir.jobs.settled IS 'True when the job leaves no chunk of its range pending, or another job took over those it left.';
COMMENT ON COLUMN weir.jobs.state IS 'queued, running, succeeded, failed or cancelled.';
COMMENT ON COLUMN weir.jobs.trigger IS 'Why it was queued: write, retry or reconcile.';
COMMENT ON COLUMN weir.jobs.namespace IS 'The source''s namespace, kept for the history.';
COMMENT ON COLUMN weir.jobs.source IS 'The source''s name, kept for the history.';
COMMENT ON COLUMN weir.jobs.model IS 'The model to embed with.';
COMMENT ON COLUMN weir.jobs.first_item_id IS 'First item of the range, inclusive.';
COMMENT ON COLUMN weir.jobs.last_item_id IS 'Last item of the range, inclusive.';
COMMENT ON COLUMN weir.jobs.worker_id IS 'While running: who holds the lease.';
COMMENT ON COLUMN weir.jobs.revoke_reason IS 'Why the last lease was taken away, or would have been: lease_lost, cancelled, superseded, source_deleted or no_progress.';
COMMENT ON COLUMN weir.jobs.last_error IS 'Why the last try failed or was handed back, or why the job was cancelled.';
COMMENT ON COLUMN weir.jobs.traceparent IS 'W3C trace context of the write that caused the job.';

-- Each index holds only the rows its queries want, so that none grows with
-- history but the two that read history. lease_expires_at and the counters are
-- in none, so that renewals stay HOT.
CREATE INDEX jobs_claim ON weir.jobs (model, priority DESC, run_at, id) WHERE state = 'queued';
CREATE INDEX jobs_due ON weir.jobs (run_at) WHERE state = 'queued';
CREATE INDEX jobs_running ON weir.jobs (id) WHERE state = 'running';
CREATE INDEX jobs_unsettled ON weir.jobs (source_id, id) WHERE NOT settled;
CREATE INDEX jobs_of_source ON weir.jobs (source_id, id);
CREATE INDEX jobs_of_namespace ON weir.jobs (namespace, id);
COMMENT ON INDEX weir.jobs_claim IS 'Claims, in their order.';
COMMENT ON INDEX weir.jobs_due IS 'Whether, and when next, a queued job may run.';
COMMENT ON INDEX weir.jobs_running IS 'The rescuer''s round.';
COMMENT ON INDEX weir.jobs_unsettled IS 'A source''s open jobs, and those that left chunks pending.';
COMMENT ON INDEX weir.jobs_of_source IS 'A source''s history.';
COMMENT ON INDEX weir.jobs_of_namespace IS 'A namespace''s history.';

-- Content of imports on its way in; each import's rows go when it ends. Unlogged,
-- because an import that a crash cut off is begun again by its client.
CREATE UNLOGGED TABLE weir.import_items (
    import_id  bigint      NOT NULL,
    item_id    text        COLLATE "C" NOT NULL,
    metadata   jsonb,
    text       text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT import_items_pkey PRIMARY KEY (import_id, item_id)
);
CREATE INDEX import_items_age ON weir.import_items (created_at);
COMMENT ON TABLE weir.import_items IS 'Items of imports that have not ended yet.';
COMMENT ON COLUMN weir.import_items.import_id IS 'The import: a random number drawn when it began.';
COMMENT ON COLUMN weir.import_items.item_id IS 'As weir.items.item_id.';
COMMENT ON COLUMN weir.import_items.metadata IS 'As weir.items.metadata.';
COMMENT ON COLUMN weir.import_items.text IS 'The whole text of the item, not yet split.';
COMMENT ON COLUMN weir.import_items.created_at IS 'When it arrived; what is a day old was left behind by a crash.';
