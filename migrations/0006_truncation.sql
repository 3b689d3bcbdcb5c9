-- Texts longer than their model takes are embedded all the same, by their
-- beginning; whoever compares vectors can tell them from the others.

ALTER TABLE weir.embeddings
    ADD COLUMN truncated_to integer,
    ADD CONSTRAINT embeddings_truncated_to_positive CHECK (truncated_to > 0);
COMMENT ON COLUMN weir.embeddings.truncated_to IS 'When the text was longer than the model takes: of how many characters, from the first, the vector was made. Null when it was made of the whole text.';
CREATE INDEX embeddings_truncated ON weir.embeddings (source_id, model) WHERE truncated_to IS NOT NULL;
COMMENT ON INDEX weir.embeddings_truncated IS 'How many chunks of a source were truncated.';

ALTER TABLE weir.jobs
    ADD COLUMN chunks_truncated integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT jobs_truncated_are_done CHECK (chunks_truncated BETWEEN 0 AND chunks_done);
COMMENT ON COLUMN weir.jobs.chunks_truncated IS 'Of those embedded, how many by the beginning of their text only.';
