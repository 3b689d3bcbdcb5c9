-- Who is connected: one row a session, which is a worker's one stream. The replica
-- that serves the stream touches the rows of all its sessions every few seconds; a
-- session that nobody has touched for the orphan grace has lost its leases.
CREATE TABLE weir.workers (
    connected_at timestamptz NOT NULL DEFAULT now(),
    touched_at   timestamptz NOT NULL DEFAULT now(),
    draining     boolean     NOT NULL DEFAULT false,
    session      text        COLLATE "C" NOT NULL,
    worker_id    text        COLLATE "C" NOT NULL,
    version      text        NOT NULL,
    replica      text        NOT NULL,
    namespaces   text[],
    models       jsonb       NOT NULL,
    CONSTRAINT workers_pkey PRIMARY KEY (session),
    CONSTRAINT workers_session_is_hex CHECK (session ~ '^[0-9a-f]{32}$'),
    CONSTRAINT workers_models_is_array CHECK (jsonb_typeof(models) = 'array')
) WITH (
    -- Every row is written anew every few seconds; room on its page keeps that HOT.
    fillfactor = 50
);
-- What a touch changes is in no index.
CREATE INDEX workers_by_worker_id ON weir.workers (worker_id, session);
COMMENT ON TABLE weir.workers IS 'Sessions of workers: one row each, written by the replica that serves it.';
COMMENT ON COLUMN weir.workers.connected_at IS 'When the session was opened.';
COMMENT ON COLUMN weir.workers.touched_at IS
    'When its replica last said that it goes on; once that is longer ago than the orphan grace, the session is over and its leases are taken back.';
COMMENT ON COLUMN weir.workers.draining IS 'Whether the worker is to stop, and is sent nothing more.';
COMMENT ON COLUMN weir.workers.session IS 'The session: 32 hexadecimal digits, drawn by the replica. A worker that comes back has another.';
COMMENT ON COLUMN weir.workers.worker_id IS 'What the worker calls itself.';
COMMENT ON COLUMN weir.workers.version IS 'The version that it says it is of.';
COMMENT ON COLUMN weir.workers.replica IS 'The coordinator that serves it.';
COMMENT ON COLUMN weir.workers.namespaces IS 'The namespaces that its token is limited to; null: all.';
COMMENT ON COLUMN weir.workers.models IS
    'An array of what it embeds with: name, the condition of the embedder, chunks in hand and embedded. As of touched_at.';
COMMENT ON INDEX weir.workers_by_worker_id IS 'The list of workers, in its order.';

ALTER TABLE weir.jobs ADD COLUMN session text COLLATE "C";
COMMENT ON COLUMN weir.jobs.session IS
    'weir.workers.session of who works on the present lease, or did on the last one; null where it is worked on by unary calls, or not yet.';
COMMENT ON COLUMN weir.jobs.stream IS 'Not used any more.';
