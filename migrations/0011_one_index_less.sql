-- Whether a queued job may run is told by the index of claims, priority by
-- priority. An index of run_at alone cost an entry of each job, and drew claims
-- that begin at a place to itself: all jobs of one write have the same run_at.
DROP INDEX weir.jobs_due;
