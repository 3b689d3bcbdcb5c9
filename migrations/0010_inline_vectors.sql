-- A vector of up to 900 numbers or so stays in its row: one write instead of
-- three, and a search reads what it compares without a detour. Two such rows fill
-- a page; of longer vectors one would, and waste the rest of it, so they go where
-- Postgres puts what is long. This holds for rows that are written from now on.
ALTER TABLE weir.embeddings SET (toast_tuple_target = 4064);
