-- no-transaction
-- A claim looks for the jobs of each namespace, and no longer for those of all:
-- the index that had them all in one line is not needed any more, and drew claims
-- to itself that pass by the jobs of other namespaces.
DROP INDEX CONCURRENTLY IF EXISTS weir.jobs_claim;
