-- What is to be done to a whole source, however large, is done in steps that can
-- be interrupted: what the next one needs to go on stands here.
CREATE TABLE weir.checks (
    source_id          bigint      NOT NULL,
    due_at             timestamptz NOT NULL,
    revision           bigint,
    items              bigint      NOT NULL DEFAULT 0,
    chunks             bigint      NOT NULL DEFAULT 0,
    rejections         bigint      NOT NULL DEFAULT 0,
    checked_to         text        COLLATE "C" NOT NULL DEFAULT '',
    rejections_version text,
    CONSTRAINT checks_pkey PRIMARY KEY (source_id)
);
CREATE INDEX checks_due ON weir.checks (due_at);
COMMENT ON TABLE weir.checks IS
    'Checks of sources that are under way: the reconciler compares a source with its vectors, jobs and counts step by step, '
    'in order of item. Gone when the source is done, or was deleted.';
COMMENT ON COLUMN weir.checks.source_id IS 'weir.sources.id.';
COMMENT ON COLUMN weir.checks.due_at IS 'When the last step was done, and the next may be begun; a minute after a step was begun, should it fail.';
COMMENT ON COLUMN weir.checks.revision IS 'The source''s revision at every step so far; null where it changed, or before the first.';
COMMENT ON COLUMN weir.checks.items IS 'Items that the steps so far have counted.';
COMMENT ON COLUMN weir.checks.chunks IS 'Chunks that they have counted.';
COMMENT ON COLUMN weir.checks.rejections IS 'Rejections that they have counted.';
COMMENT ON COLUMN weir.checks.checked_to IS 'The last item that was looked at; empty before the first.';
COMMENT ON COLUMN weir.checks.rejections_version IS
    'Of the source''s rows in weir.rejection_counts, the same while none of them changes; null where they changed, or before the first step.';
COMMENT ON INDEX weir.checks_due IS 'The reconciler''s round: whose last step is longest ago comes first.';
COMMENT ON COLUMN weir.sources.checked_at IS 'When the reconciler last began to compare the source with its vectors, or when the source was first put.';

-- A large source that changes its model moves to it in the steps of a prompt that
-- changes, in order of item, whether the prompts differ or not.
ALTER TABLE weir.sources
    ADD COLUMN chunks_to_move   bigint,
    ADD COLUMN move_priority    smallint,
    ADD COLUMN move_traceparent text,
    ADD CONSTRAINT sources_move_has_a_place
        CHECK (chunks_to_move IS NULL OR chunks_to_move >= 0 AND next_prompt_id IS NOT NULL) NOT VALID;
COMMENT ON COLUMN weir.sources.chunks_to_move IS
    'While the source moves to another model: its chunks behind prompted_to. They are in no job, their hashes are of any prompt, '
    'and their rejections are of former models and count no more.';
COMMENT ON COLUMN weir.sources.move_priority IS 'While it moves: the priority of the write that changed the model.';
COMMENT ON COLUMN weir.sources.move_traceparent IS 'While it moves: the W3C trace context of that write.';
COMMENT ON COLUMN weir.sources.prompt_id IS 'weir.prompts.id of what stands before each of its texts; 0: nothing, or while it moves to another model.';
COMMENT ON COLUMN weir.sources.next_prompt_id IS 'While the prompt or the model changes: weir.prompts.id of the next one; 0: none.';
COMMENT ON COLUMN weir.sources.prompted_to IS 'While the prompt or the model changes: the last item whose chunks have the next prompt.';
COMMENT ON INDEX weir.sources_prompting IS 'Sources whose prompt or model is changing.';
COMMENT ON TABLE weir.rejection_counts IS
    'Rows of weir.rejections of a source, but for those of former models: the sum over its rows here. A row is written by whoever '
    'holds the lock of its job, or that of the source with all its unsettled jobs.';
COMMENT ON TABLE weir.former_models IS
    'Models that a source had before, and of which it may still have vectors: gone once nothing of the source is unsettled or moves.';
