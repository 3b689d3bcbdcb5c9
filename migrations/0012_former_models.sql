-- How many numbers the vectors of a model have holds for as long as there are
-- such vectors. To look for one through the sources of the model takes no index
-- of the vectors; but of a source that changed its model the old vectors stay
-- until the new ones replace them, and so it is noted which it had.
CREATE TABLE weir.former_models (
    source_id  bigint      NOT NULL,
    model      text        NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT former_models_pkey PRIMARY KEY (source_id, model)
);
COMMENT ON TABLE weir.former_models IS
    'Models that a source had before, and of which it may still have vectors: gone once nothing of the source is unsettled.';
COMMENT ON COLUMN weir.former_models.source_id IS 'weir.sources.id.';
COMMENT ON COLUMN weir.former_models.model IS 'The model it had.';
COMMENT ON COLUMN weir.former_models.changed_at IS 'When it changed to another.';

-- Whatever is settled has vectors of its present model alone.
INSERT INTO weir.former_models (source_id, model)
SELECT DISTINCT e.source_id, e.model
FROM (SELECT DISTINCT source_id FROM weir.jobs WHERE NOT settled) u
JOIN weir.sources s ON s.id = u.source_id
JOIN weir.embeddings e ON e.source_id = s.id AND e.model <> s.model;

COMMENT ON TABLE weir.models IS
    'Models, each with the dimension of its vectors: what the coordinator was told, or what the first vectors had. '
    'It may become another while the model has no vectors. Whoever writes vectors holds a lock of the row.';
COMMENT ON COLUMN weir.models.created_at IS 'When the dimension was fixed.';

-- Revisions of a name never go back: a source that is put again goes on where
-- the one that was deleted stopped, so that a write that was made for the old
-- one does not fit the new one by accident.
CREATE TABLE weir.deleted_sources (
    namespace  text        COLLATE "C" NOT NULL,
    name       text        COLLATE "C" NOT NULL,
    revision   bigint      NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT deleted_sources_pkey PRIMARY KEY (namespace, name),
    CONSTRAINT deleted_sources_revision_positive CHECK (revision > 0)
);
CREATE INDEX deleted_sources_age ON weir.deleted_sources (deleted_at);
COMMENT ON TABLE weir.deleted_sources IS 'Names of sources that were deleted, kept for as long as the history of their jobs.';
COMMENT ON COLUMN weir.deleted_sources.namespace IS 'The namespace.';
COMMENT ON COLUMN weir.deleted_sources.name IS 'The name.';
COMMENT ON COLUMN weir.deleted_sources.revision IS 'The revision that the source had when it was deleted.';
COMMENT ON COLUMN weir.deleted_sources.deleted_at IS 'When it was deleted.';
COMMENT ON INDEX weir.deleted_sources_age IS 'Those to be forgotten first.';
COMMENT ON COLUMN weir.sources.revision IS
    'Rises by one with every change of content or model; begins after that of a deleted source of the same name, else with 1.';
