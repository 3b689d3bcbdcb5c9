-- A source that is deleted is gone at once, with its row and its jobs. What there
-- was of a large one in the tables of items, chunks, vectors and rejections
-- follows in steps, so that no transaction is long; nothing finds these rows
-- meanwhile that goes by weir.sources.
CREATE TABLE weir.leftovers (
    source_id         bigint      NOT NULL,
    rows_left         bigint      NOT NULL,
    deleted_at        timestamptz NOT NULL DEFAULT now(),
    swept_chunk_index integer     NOT NULL,
    swept_table       text        NOT NULL,
    swept_item_id     text        COLLATE "C" NOT NULL,
    CONSTRAINT leftovers_pkey PRIMARY KEY (source_id),
    CONSTRAINT leftovers_rows_left_positive CHECK (rows_left > 0),
    CONSTRAINT leftovers_swept_table_known CHECK (swept_table IN ('embeddings', 'rejections', 'chunks', 'items'))
);
COMMENT ON TABLE weir.leftovers IS
    'Sources that were deleted and of which rows of weir.embeddings, weir.rejections, weir.chunks and weir.items are left, in this order: '
    'a step deletes some of them, and the row goes with the last.';
COMMENT ON COLUMN weir.leftovers.source_id IS 'What was its weir.sources.id.';
COMMENT ON COLUMN weir.leftovers.rows_left IS 'About how many rows are left.';
COMMENT ON COLUMN weir.leftovers.deleted_at IS 'When the source was deleted.';
COMMENT ON COLUMN weir.leftovers.swept_chunk_index IS 'The chunk_index of the last row that was deleted; -1 for that of an item, or where none was.';
COMMENT ON COLUMN weir.leftovers.swept_table IS 'The table that the next step goes on with: nothing is left in those before it.';
COMMENT ON COLUMN weir.leftovers.swept_item_id IS 'The item_id of the last row of it that was deleted; empty where none was.';

COMMENT ON TABLE weir.embeddings IS
    'The vectors, made to be joined with weir.sources and searched with plain SQL. A row''s text_hash is that of its chunk: '
    'when a text changes, its vector goes in the same transaction. When a source''s model or its prompt changes, the old '
    'vectors stay, under the old model''s name or with the old hash, until the new ones replace them. Rows of a large source '
    'that was deleted go within minutes: there is no weir.sources for them.';

-- A range of items that a client has embedded anew may hold any number of chunks:
-- what was made of them is forgotten, and they are queued, in steps in order of item.
CREATE TABLE weir.forced_ranges (
    id                 bigint      GENERATED ALWAYS AS IDENTITY,
    source_id          bigint      NOT NULL,
    job_id             bigint      NOT NULL,
    requested_at       timestamptz NOT NULL DEFAULT now(),
    max_chunks_per_job integer     NOT NULL,
    priority           smallint    NOT NULL,
    model              text        NOT NULL,
    first_item_id      text        COLLATE "C" NOT NULL,
    last_item_id       text        COLLATE "C" NOT NULL,
    next_item_id       text        COLLATE "C" NOT NULL,
    traceparent        text,
    CONSTRAINT forced_ranges_pkey PRIMARY KEY (id),
    CONSTRAINT forced_ranges_in_order CHECK (first_item_id <= next_item_id AND next_item_id <= last_item_id)
);
CREATE INDEX forced_ranges_of_source ON weir.forced_ranges (source_id, first_item_id);
COMMENT ON TABLE weir.forced_ranges IS
    'Ranges of sources that clients have embedded anew and that are not all queued yet; those of one source do not overlap. '
    'Whoever changes them holds the lock of the source.';
COMMENT ON COLUMN weir.forced_ranges.id IS 'Rises with every range.';
COMMENT ON COLUMN weir.forced_ranges.source_id IS 'weir.sources.id.';
COMMENT ON COLUMN weir.forced_ranges.job_id IS 'weir.jobs.id of the job whose range, or part of a range, it is.';
COMMENT ON COLUMN weir.forced_ranges.requested_at IS 'When it was asked for.';
COMMENT ON COLUMN weir.forced_ranges.max_chunks_per_job IS 'Most pending chunks in one of the jobs that are queued.';
COMMENT ON COLUMN weir.forced_ranges.priority IS 'Priority of these jobs.';
COMMENT ON COLUMN weir.forced_ranges.model IS 'The model of the source when it was asked for: all of another is embedded anew in any case.';
COMMENT ON COLUMN weir.forced_ranges.first_item_id IS 'First item of the range, inclusive.';
COMMENT ON COLUMN weir.forced_ranges.last_item_id IS 'Last item of the range, inclusive.';
COMMENT ON COLUMN weir.forced_ranges.next_item_id IS 'Where the next step begins: what is before it is queued.';
COMMENT ON COLUMN weir.forced_ranges.traceparent IS 'W3C trace context of the call.';
COMMENT ON INDEX weir.forced_ranges_of_source IS 'What of a source is under way.';
