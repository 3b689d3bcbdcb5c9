//! A pool of workers and its queue, second by second.

use std::collections::VecDeque;

use crate::{
    demand::{DAY, Put},
    scaler::{Scaler, Settings},
};

/// Chunks that a worker embeds in a second.
pub(crate) const RATE: u64 = 20;
/// Chunks of a job, as `--max-chunks-per-job` has it.
const JOB: u64 = 1_000;
/// Seconds from a pod's creation until its worker claims.
const START: usize = 40;
/// Seconds that a worker drains, and then has handed back what it had.
const DRAIN: usize = 3;

/// What a day came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) embedded: u64,
    /// Hours of all pods, starting and draining ones too.
    pub(crate) pod_hours: f64,
    /// Seconds of the day without any pod.
    pub(crate) asleep: usize,
    pub(crate) most: usize,
    pub(crate) changes: usize,
    /// Workers that were taken away and wanted again within five minutes.
    pub(crate) reversals: usize,
    /// Of each source, in the order of puts: seconds until it was embedded.
    pub(crate) seconds: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    source: usize,
    left: u64,
}

#[derive(Debug)]
struct Worker {
    /// When it claims for the first time.
    ready: usize,
    job: Option<Job>,
}

/// The queue, and what of each source is still to be embedded.
#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    left: Vec<u64>,
    put_at: Vec<usize>,
    seconds: Vec<usize>,
    embedded: u64,
}

impl Queue {
    fn put(&mut self, put: &Put) {
        let source = self.left.len();
        self.left.push(put.chunks);
        self.put_at.push(put.at);
        self.seconds.push(0);
        let mut rest = put.chunks;
        while rest > 0 {
            let left = rest.min(JOB);
            self.jobs.push_back(Job { source, left });
            rest -= left;
        }
    }

    fn pending(&self) -> u64 {
        self.left.iter().sum()
    }

    /// Lets a worker embed for a second.
    fn work(&mut self, worker: &mut Worker, now: usize) {
        let mut budget = RATE;
        while budget > 0 {
            let Some(mut job) = worker.job.take().or_else(|| self.jobs.pop_front()) else {
                return;
            };
            let done = job.left.min(budget);
            job.left -= done;
            budget -= done;
            self.embedded += done;
            self.left[job.source] -= done;
            if self.left[job.source] == 0 {
                self.seconds[job.source] = now + 1 - self.put_at[job.source];
            }
            if job.left > 0 {
                worker.job = Some(job);
            }
        }
    }
}

/// Runs a day, and for as long after it as there is work.
pub(crate) fn scaled(puts: &[Put], settings: Settings) -> Outcome {
    let mut scaler = Scaler::new(settings);
    let mut queue = Queue::default();
    let (mut workers, mut draining): (Vec<Worker>, Vec<usize>) = (Vec::new(), Vec::new());
    let (mut pod_seconds, mut asleep, mut most) = (0, 0, 0);
    let mut coming = puts.iter().peekable();
    for now in 0..2 * DAY {
        while let Some(put) = coming.next_if(|put| put.at == now) {
            queue.put(put);
        }
        let pending = queue.pending();
        if now >= DAY && pending == 0 {
            break;
        }
        let replicas = scaler.step(now, pending);
        while workers.len() < replicas {
            let ready = now + START;
            workers.push(Worker { ready, job: None });
        }
        // The youngest go first, as a ReplicaSet has it; what they have is handed back.
        for worker in workers.drain(replicas..) {
            draining.push(now + DRAIN);
            queue.jobs.extend(worker.job);
        }
        draining.retain(|end| *end > now);
        for worker in workers.iter_mut().filter(|worker| worker.ready <= now) {
            queue.work(worker, now);
        }
        let pods = workers.len() + draining.len();
        pod_seconds += pods;
        asleep += usize::from(pods == 0 && now < DAY);
        most = most.max(replicas);
    }
    Outcome {
        embedded: queue.embedded,
        pod_hours: pod_seconds as f64 / 3_600.0,
        asleep,
        most,
        changes: scaler.changes.len(),
        reversals: scaler.reversals(300),
        seconds: queue.seconds,
    }
}

/// Who knows everything: as many workers as allowed, there at once, paid for
/// only while they embed.
pub(crate) fn oracle(puts: &[Put], most: usize) -> Outcome {
    let mut queue = Queue::default();
    let ready = || Worker {
        ready: 0,
        job: None,
    };
    let mut workers: Vec<Worker> = (0..most).map(|_| ready()).collect();
    let mut coming = puts.iter().peekable();
    for now in 0..2 * DAY {
        while let Some(put) = coming.next_if(|put| put.at == now) {
            queue.put(put);
        }
        for worker in &mut workers {
            queue.work(worker, now);
        }
    }
    Outcome {
        embedded: queue.embedded,
        pod_hours: queue.embedded as f64 / RATE as f64 / 3_600.0,
        asleep: 0,
        most,
        changes: 0,
        reversals: 0,
        seconds: queue.seconds,
    }
}
