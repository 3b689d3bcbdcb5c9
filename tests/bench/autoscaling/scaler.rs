//! KEDA and the horizontal autoscaler of pods, by their documented rules:
//! <https://keda.sh/docs/latest/concepts/scaling-deployments/> and
//! <https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/>.
//! The behaviour is that of the chart's values.

use std::collections::VecDeque;

use weir_coordinator::job::pool::Pool;

/// Seconds between two looks of the horizontal autoscaler of pods.
const SYNC: usize = 15;
/// A ratio this near to 1 changes nothing.
const TOLERANCE: f64 = 0.1;
/// Seconds over which the largest recommendation holds against fewer workers.
const STABILISATION: usize = 300;
/// In so many seconds, so many workers more, or the double.
const UP: (usize, usize) = (30, 4);
/// In so many seconds, no fewer than half.
const DOWN: usize = 60;

/// What a pool is scaled by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) pool: Pool,
    pub(crate) min: usize,
    pub(crate) max: usize,
    /// Seconds between two looks of KEDA.
    pub(crate) polling: usize,
    /// Seconds without work until there are no workers.
    pub(crate) cooldown: usize,
    /// Whether the coordinator tells KEDA of the first job.
    pub(crate) push: bool,
}

/// Decides how many workers there should be, second by second.
#[derive(Debug)]
pub(crate) struct Scaler {
    settings: Settings,
    replicas: usize,
    last_active: usize,
    /// (when, how many) was recommended.
    recommended: VecDeque<(usize, usize)>,
    /// (when, from, to) of every change.
    pub(crate) changes: Vec<(usize, usize, usize)>,
}

impl Scaler {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            replicas: settings.min,
            last_active: 0,
            recommended: VecDeque::new(),
            changes: Vec::new(),
        }
    }

    /// Replicas from this second on.
    pub(crate) fn step(&mut self, now: usize, pending: u64) -> usize {
        let active = self.settings.pool.is_active(pending as i64);
        let looks = now.is_multiple_of(self.settings.polling);
        if active && (looks || self.settings.push) {
            self.last_active = now;
        }
        let wanted = if self.replicas == 0 {
            let woken = active && (looks || self.settings.push);
            usize::from(woken)
        } else if self.settings.min == 0
            && looks
            && !active
            && now - self.last_active >= self.settings.cooldown
        {
            0
        } else if now.is_multiple_of(SYNC) {
            self.autoscale(now, pending)
        } else {
            self.replicas
        };
        if wanted != self.replicas {
            self.changes.push((now, self.replicas, wanted));
            self.replicas = wanted;
        }
        self.replicas
    }

    /// What the horizontal autoscaler of pods makes of the metric.
    fn autoscale(&mut self, now: usize, pending: u64) -> usize {
        let target = self.settings.pool.chunks_per_worker as f64;
        let ratio = pending as f64 / (target * self.replicas as f64);
        let wanted = if (ratio - 1.0).abs() <= TOLERANCE {
            self.replicas
        } else {
            (pending as f64 / target).ceil() as usize
        };
        let least = self.settings.min.max(1);
        let wanted = wanted.clamp(least, self.settings.max);
        self.recommended.push_back((now, wanted));
        let old = |&(at, _): &(usize, usize)| at + STABILISATION < now;
        while self.recommended.front().is_some_and(old) {
            self.recommended.pop_front();
        }
        if wanted > self.replicas {
            let before = self.replicas_before(now, UP.0);
            let limit = (before + UP.1).max(before * 2);
            return wanted.min(limit).max(self.replicas);
        }
        let held = self.recommended.iter().map(|&(_, wanted)| wanted).max();
        let held = held.unwrap_or(wanted).min(self.replicas);
        let limit = self.replicas_before(now, DOWN) / 2;
        held.max(limit).max(least)
    }

    /// How many there were this many seconds ago.
    fn replicas_before(&self, now: usize, seconds: usize) -> usize {
        let recent = |&&(at, _, _): &&(usize, usize, usize)| at + seconds > now;
        let first = self.changes.iter().rev().take_while(recent).last();
        first.map_or(self.replicas, |&(_, from, _)| from)
    }

    /// How often workers were taken away and wanted again within `seconds`.
    pub(crate) fn reversals(&self, seconds: usize) -> usize {
        let pairs = self.changes.windows(2);
        let reversed = pairs.filter(|pair| {
            let [(at, from, to), (again, was, wanted)] = pair else {
                return false;
            };
            to < from && wanted > was && again - at < seconds
        });
        reversed.count()
    }
}
