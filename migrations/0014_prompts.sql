-- What a model wants before each text of a document is part of what is embedded,
-- and so of the text's hash. A source whose model gets another prompt is hashed
-- anew step by step, in order of item: what is before prompted_to has the next
-- prompt, what is after it the present one. Without a prompt nothing changes: the
-- hashes of all texts that are there stay what they are.
CREATE TABLE weir.prompts (
    id     bigint      GENERATED ALWAYS AS IDENTITY,
    set_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    model  text        NOT NULL,
    prompt text        NOT NULL,
    CONSTRAINT prompts_pkey PRIMARY KEY (id),
    CONSTRAINT prompts_prompt_length CHECK (octet_length(prompt) <= 4096)
);
CREATE INDEX prompts_in_force ON weir.prompts (model, set_at DESC, id DESC);
COMMENT ON TABLE weir.prompts IS
    'What stands before each text of a model''s documents when it is embedded: every prompt that a model has had, each once. '
    'In force is the one that was set last; a model without any has none. Whoever sets one holds a lock of the table.';
COMMENT ON COLUMN weir.prompts.id IS 'What sources name it by.';
COMMENT ON COLUMN weir.prompts.set_at IS 'When a coordinator that started last set it.';
COMMENT ON COLUMN weir.prompts.model IS 'The model, as sources name it.';
COMMENT ON COLUMN weir.prompts.prompt IS 'The prompt, with the space that ends it where it has one; may be empty.';
COMMENT ON INDEX weir.prompts_in_force IS 'The prompts of a model, that in force first.';

ALTER TABLE weir.sources
    ADD COLUMN prompt_id      bigint NOT NULL DEFAULT 0,
    ADD COLUMN next_prompt_id bigint,
    ADD COLUMN prompted_to    text   COLLATE "C",
    ADD CONSTRAINT sources_prompt_id_not_negative CHECK (prompt_id >= 0),
    ADD CONSTRAINT sources_next_prompt_has_a_place CHECK ((next_prompt_id IS NULL) = (prompted_to IS NULL));
COMMENT ON COLUMN weir.sources.prompt_id IS 'weir.prompts.id of what stands before each of its texts; 0: nothing.';
COMMENT ON COLUMN weir.sources.next_prompt_id IS 'While the prompt changes: weir.prompts.id of the next one.';
COMMENT ON COLUMN weir.sources.prompted_to IS 'While the prompt changes: the last item whose chunks have the next prompt.';
CREATE INDEX sources_prompt ON weir.sources (model, prompt_id);
CREATE INDEX sources_prompting ON weir.sources (id) WHERE next_prompt_id IS NOT NULL;
COMMENT ON INDEX weir.sources_prompt IS 'Sources whose prompt is not that in force.';
COMMENT ON INDEX weir.sources_prompting IS 'Sources whose prompt is changing.';

COMMENT ON COLUMN weir.chunks.text IS 'The text. What is embedded is the prompt of its source, and then this.';
COMMENT ON COLUMN weir.chunks.text_hash IS 'SHA-256 of what is embedded: the prompt of its source, and then text.';
COMMENT ON COLUMN weir.embeddings.text_hash IS 'SHA-256 of what was embedded, its prompt included.';
COMMENT ON COLUMN weir.embeddings.truncated_to IS
    'When the text was longer than the model takes: of how many characters, from the first and without the prompt, the vector was made. '
    'Null when it was made of the whole text.';
COMMENT ON COLUMN weir.rejections.text_hash IS 'SHA-256 of what was refused, its prompt included.';
COMMENT ON TABLE weir.embeddings IS
    'The vectors, made to be joined and searched with plain SQL. A row''s text_hash is that of its chunk: '
    'when a text changes, its vector goes in the same transaction. When a source''s model or its prompt changes, the old '
    'vectors stay, under the old model''s name or with the old hash, until the new ones replace them.';
