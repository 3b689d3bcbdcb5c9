-- What embedding made of the chunks: vectors and rejections.

CREATE TABLE weir.embeddings (
    source_id   bigint      NOT NULL,
    embedded_at timestamptz NOT NULL DEFAULT now(),
    chunk_index integer     NOT NULL,
    item_id     text        COLLATE "C" NOT NULL,
    model       text        NOT NULL,
    text_hash   bytea       NOT NULL,
    embedding   vector      NOT NULL,
    CONSTRAINT embeddings_pkey PRIMARY KEY (source_id, item_id, chunk_index),
    CONSTRAINT embeddings_text_hash_is_sha256 CHECK (octet_length(text_hash) = 32)
);
COMMENT ON TABLE weir.embeddings IS
    'The vectors, made to be joined and searched with plain SQL. A row''s text_hash is that of its chunk: '
    'when a text changes, its vector goes in the same transaction. When a source''s model changes, the old '
    'model''s vectors stay, under its name, until the new ones replace them.';
COMMENT ON COLUMN weir.embeddings.source_id IS 'weir.sources.id.';
COMMENT ON COLUMN weir.embeddings.embedded_at IS 'When the vector was stored.';
COMMENT ON COLUMN weir.embeddings.chunk_index IS 'weir.chunks.chunk_index.';
COMMENT ON COLUMN weir.embeddings.item_id IS 'weir.chunks.item_id.';
COMMENT ON COLUMN weir.embeddings.model IS 'The model that made the vector; compare only vectors of one model.';
COMMENT ON COLUMN weir.embeddings.text_hash IS 'SHA-256 of the text that was embedded.';
COMMENT ON COLUMN weir.embeddings.embedding IS 'The vector, of weir.models.dimension numbers.';

CREATE TABLE weir.rejections (
    source_id   bigint      NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT now(),
    chunk_index integer     NOT NULL,
    item_id     text        COLLATE "C" NOT NULL,
    model       text        NOT NULL,
    text_hash   bytea       NOT NULL,
    reason      text        NOT NULL,
    CONSTRAINT rejections_pkey PRIMARY KEY (source_id, item_id, chunk_index),
    CONSTRAINT rejections_text_hash_is_sha256 CHECK (octet_length(text_hash) = 32)
);
COMMENT ON TABLE weir.rejections IS 'Chunks that the embedder can never take, with the reason.';
COMMENT ON COLUMN weir.rejections.source_id IS 'weir.sources.id.';
COMMENT ON COLUMN weir.rejections.rejected_at IS 'When the chunk was rejected.';
COMMENT ON COLUMN weir.rejections.chunk_index IS 'weir.chunks.chunk_index.';
COMMENT ON COLUMN weir.rejections.item_id IS 'weir.chunks.item_id.';
COMMENT ON COLUMN weir.rejections.model IS 'The model that refused the text.';
COMMENT ON COLUMN weir.rejections.text_hash IS 'SHA-256 of the text that was refused.';
COMMENT ON COLUMN weir.rejections.reason IS 'Why, in words for a person.';
