-- Namespaces take turns: each has its jobs in a line of its own.
COMMENT ON INDEX weir.jobs_claim_of_namespace IS
    'Where the jobs begin of a namespace, a model and a priority; claims, in their order; and what a namespace has waiting.';

-- A priority that goes before jobs of other namespaces is 10 more than the one
-- that was asked for. What is there was checked against less.
ALTER TABLE weir.jobs
    DROP CONSTRAINT jobs_priority_range,
    ADD CONSTRAINT jobs_priority_range CHECK (priority BETWEEN 0 AND 9 OR priority BETWEEN 11 AND 19) NOT VALID;
COMMENT ON COLUMN weir.jobs.priority IS
    'Higher is claimed first: 0 to 9 among the jobs of its namespace; 11 to 19, which is 10 more than was asked for, among all.';
