-- Leases that are bound to the token they were taken with, and claims that are
-- limited to some namespaces.

ALTER TABLE weir.jobs ADD COLUMN claimed_by text;
COMMENT ON COLUMN weir.jobs.claimed_by IS 'Name of the token that the present lease, or the last one, was claimed with; null when it was claimed without one.';

CREATE INDEX jobs_claim_of_namespace ON weir.jobs (namespace, model, priority DESC, run_at, id) WHERE state = 'queued';
COMMENT ON INDEX weir.jobs_claim_of_namespace IS 'Claims of workers that are limited to some namespaces, in their order; and what a namespace has waiting.';
