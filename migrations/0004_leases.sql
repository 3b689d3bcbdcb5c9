-- What a lease tells of its worker, so that one that ends can be judged: was
-- the worker ever heard of, and over how many texts did it fall silent.

ALTER TABLE weir.jobs
    ADD COLUMN heard      boolean NOT NULL DEFAULT false,
    ADD COLUMN batch_size integer,
    ADD COLUMN suspects   integer NOT NULL DEFAULT 0,
    ADD COLUMN stream     integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT jobs_batch_size_positive CHECK (batch_size > 0),
    ADD CONSTRAINT jobs_suspects_not_negative CHECK (suspects >= 0);
COMMENT ON COLUMN weir.jobs.heard IS 'Whether the worker has been heard of since it claimed: the answer to its claim arrived.';
COMMENT ON COLUMN weir.jobs.batch_size IS 'Most chunks in a batch of the present lease, or the last one; null until a batch was asked for.';
COMMENT ON COLUMN weir.jobs.stream IS 'Streams opened on the job so far: which of them is the latest, and may end the lease early when it breaks.';
COMMENT ON COLUMN weir.jobs.suspects IS 'How many of the next pending chunks, in the order they are handed out, may hold a text that kills its worker; 0 when none is suspected.';
