-- What clients keep embedded: models, sources, items and chunks.
--
-- The bulk tables (items, chunks, embeddings, rejections) have no foreign keys:
-- a foreign key costs a look-up and a row lock for every row of a batch, on the
-- hottest path there is. The coordinator deletes what belongs together in one
-- transaction instead, under the lock of the source's row.
--
-- item_id is collated "C" everywhere, so that a job's range means the same in
-- every database and in the coordinator: bytewise order.

CREATE TABLE weir.models (
    name       text        NOT NULL,
    dimension  integer     NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT models_pkey PRIMARY KEY (name),
    CONSTRAINT models_dimension_fits_vector CHECK (dimension BETWEEN 1 AND 16000)
);
COMMENT ON TABLE weir.models IS 'Every model that has made a vector. The first vectors fix the dimension.';
COMMENT ON COLUMN weir.models.name IS 'The name that sources and workers give the model.';
COMMENT ON COLUMN weir.models.dimension IS 'Numbers in a vector of this model.';
COMMENT ON COLUMN weir.models.created_at IS 'When its first vectors came.';

CREATE TABLE weir.sources (
    id           bigint      GENERATED ALWAYS AS IDENTITY,
    namespace    text        COLLATE "C" NOT NULL,
    name         text        COLLATE "C" NOT NULL,
    model        text        NOT NULL,
    revision     bigint      NOT NULL DEFAULT 0,
    items_total  bigint      NOT NULL DEFAULT 0,
    chunks_total bigint      NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT sources_pkey PRIMARY KEY (id),
    CONSTRAINT sources_namespace_name_key UNIQUE (namespace, name),
    CONSTRAINT sources_counts_not_negative CHECK (revision >= 0 AND items_total >= 0 AND chunks_total >= 0)
);
COMMENT ON TABLE weir.sources IS 'What clients keep embedded. A row''s lock is the right to change the source''s content.';
COMMENT ON COLUMN weir.sources.id IS 'Never used again, also not after the source is deleted.';
COMMENT ON COLUMN weir.sources.namespace IS 'The namespace.';
COMMENT ON COLUMN weir.sources.name IS 'The name, unique in its namespace.';
COMMENT ON COLUMN weir.sources.model IS 'The embedding model.';
COMMENT ON COLUMN weir.sources.revision IS 'Rises by one with every change of content or model; 0 only inside the transaction that creates the source.';
COMMENT ON COLUMN weir.sources.items_total IS 'Rows of weir.items of this source.';
COMMENT ON COLUMN weir.sources.chunks_total IS 'Rows of weir.chunks of this source.';
COMMENT ON COLUMN weir.sources.created_at IS 'When the source was first put.';
COMMENT ON COLUMN weir.sources.updated_at IS 'When its content or model last changed.';

CREATE TABLE weir.items (
    source_id bigint NOT NULL,
    item_id   text   COLLATE "C" NOT NULL,
    metadata  jsonb,
    CONSTRAINT items_pkey PRIMARY KEY (source_id, item_id),
    CONSTRAINT items_metadata_is_object CHECK (jsonb_typeof(metadata) = 'object')
);
COMMENT ON TABLE weir.items IS 'The embeddable things of each source.';
COMMENT ON COLUMN weir.items.source_id IS 'weir.sources.id.';
COMMENT ON COLUMN weir.items.item_id IS 'The item''s identity within its source.';
COMMENT ON COLUMN weir.items.metadata IS 'What the client wants back with a search hit; not embedded.';

CREATE TABLE weir.chunks (
    source_id   bigint  NOT NULL,
    chunk_index integer NOT NULL,
    item_id     text    COLLATE "C" NOT NULL,
    text_hash   bytea   NOT NULL,
    text        text    NOT NULL,
    CONSTRAINT chunks_pkey PRIMARY KEY (source_id, item_id, chunk_index),
    CONSTRAINT chunks_index_not_negative CHECK (chunk_index >= 0),
    CONSTRAINT chunks_text_hash_is_sha256 CHECK (octet_length(text_hash) = 32)
);
COMMENT ON TABLE weir.chunks IS 'The texts of each item, each of which becomes one vector.';
COMMENT ON COLUMN weir.chunks.source_id IS 'weir.sources.id.';
COMMENT ON COLUMN weir.chunks.chunk_index IS 'Place in the item, from 0 without gaps.';
COMMENT ON COLUMN weir.chunks.item_id IS 'weir.items.item_id.';
COMMENT ON COLUMN weir.chunks.text_hash IS 'SHA-256 of text.';
COMMENT ON COLUMN weir.chunks.text IS 'What is embedded.';
