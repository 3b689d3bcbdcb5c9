use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Namespaces with what each has queued, by the chunks of its jobs.
struct World {
    share: FairShare,
    queued: Vec<VecDeque<i64>>,
    /// Chunks that each has got.
    got: Vec<i64>,
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

impl World {
    fn new(weights: &[u32]) -> Self {
        let weights = NAMES.iter().zip(weights);
        let weights = weights.map(|(name, weight)| ((*name).to_owned(), *weight));
        Self {
            share: FairShare::new(weights.collect()),
            queued: vec![VecDeque::new(); NAMES.len()],
            got: vec![0; NAMES.len()],
        }
    }

    fn waiting(&self) -> Vec<(usize, Waiting<'static>)> {
        let queued = self.queued.iter().enumerate();
        let waiting = queued.filter_map(|(at, jobs)| {
            let one = Waiting {
                namespace: NAMES[at],
                tier: 0,
                chunks: *jobs.front()?,
                since: 0,
            };
            Some((at, one))
        });
        waiting.collect()
    }

    /// Claims as the store does, and returns who got a job, in order.
    fn claim(&mut self, wanted: Wanted, must_not: &[&str]) -> Vec<&'static str> {
        let (places, waiting): (Vec<usize>, Vec<Waiting<'_>>) = self.waiting().into_iter().unzip();
        let barred = |namespace: &str| must_not.contains(&namespace);
        let mut jobs = Vec::new();
        for portion in self.share.portions(&waiting, wanted, barred) {
            let at = places[portion.waiting];
            let mut chunks = 0;
            for size in self.queued[at].iter().take(portion.jobs as usize) {
                if chunks < portion.chunks {
                    jobs.push((portion.from + chunks * portion.step, at, *size));
                }
                chunks += size;
            }
        }
        jobs.sort_by_key(|(begins, ..)| *begins);
        let (mut who, mut all) = (Vec::new(), 0);
        for (_, at, size) in jobs {
            let is_enough = wanted.chunks > 0 && all >= wanted.chunks;
            if is_enough || who.len() as i64 >= wanted.jobs {
                break;
            }
            all += size;
            self.queued[at].pop_front();
            self.got[at] += size;
            self.share.took(NAMES[at], 0, size);
            who.push(NAMES[at]);
        }
        let left = self.waiting();
        let left = left.iter().map(|(_, one)| (one.namespace, one.tier));
        self.share.go_on(left);
        who
    }

    fn queue(&mut self, at: usize, jobs: usize, size: i64) {
        self.queued[at].extend(std::iter::repeat_n(size, jobs));
    }
}

const ONE: Wanted = Wanted { jobs: 1, chunks: 0 };

#[test]
fn the_only_job_of_a_namespace_comes_next_whatever_another_has_queued() {
    let mut world = World::new(&[]);
    world.queue(0, 100, 1_000);
    for _ in 0..7 {
        assert_eq!(world.claim(ONE, &[]), ["a"]);
    }
    world.queue(1, 1, 1);
    assert_eq!(
        world.claim(ONE, &["a"]),
        ["b"],
        "also beside hands full of a"
    );
    assert!(world.claim(ONE, &["a"]).is_empty());
    assert_eq!(world.claim(ONE, &[]), ["a"]);
}

#[test]
fn of_those_that_come_anew_the_longest_waiting_is_first() {
    let share = FairShare::default();
    let one = |namespace, since| Waiting {
        namespace,
        tier: 0,
        chunks: 1,
        since,
    };
    // However many namespaces come after it, and whatever they are called.
    let waiting = [one("a", 30), one("b", 20), one("z", 10)];
    let next = share.portions(&waiting, ONE, |_| false);
    assert_eq!(next[0].waiting, 2);
}

#[test]
fn what_was_not_used_is_not_saved() {
    let mut world = World::new(&[]);
    world.queue(0, 100, 10);
    for _ in 0..50 {
        world.claim(ONE, &[]);
    }
    world.queue(1, 100, 10);
    let next: Vec<_> = (0..6).flat_map(|_| world.claim(ONE, &[])).collect();
    assert_eq!(
        next.iter().filter(|who| **who == "b").count(),
        3,
        "{next:?}"
    );
}

#[test]
fn a_priority_that_counts_across_namespaces_goes_first_and_is_shared_too() {
    let share = FairShare::default();
    let one = |namespace, priority| Waiting {
        namespace,
        tier: tier(priority),
        chunks: 5,
        since: 0,
    };
    let waiting = [
        one("a", 9),
        one("b", across(1)),
        one("c", across(9)),
        one("d", across(9)),
    ];
    let wanted = Wanted { jobs: 3, chunks: 0 };
    let order: Vec<_> = share
        .portions(&waiting, wanted, |_| false)
        .iter()
        .map(|it| it.waiting)
        .collect();
    assert_eq!(order, [2, 3, 1, 0]);
    assert_eq!(
        (asked(across(9)), asked(7), across(0), tier(9)),
        (9, 7, 0, 0)
    );
    // Nobody goes round one that is next.
    assert!(
        share
            .portions(&waiting, wanted, |it| it == "c" || it == "d")
            .is_empty()
    );
}

proptest! {
    /// Whatever else comes and goes, two that always have something queued are
    /// served by their weights, but for a job of each and what one claim takes.
    #[test]
    fn those_that_wait_are_served_by_their_weights(
        weights in prop::collection::vec(1..20_u32, 5),
        sizes in prop::collection::vec(1..200_i64, 1..40),
        steps in prop::collection::vec((0..8_usize, 1..200_i64, 1..6_i64, 0..300_i64), 1..120),
    ) {
        let mut world = World::new(&weights);
        for at in [0, 1] {
            for size in sizes.iter().cycle().skip(7 * at).take(4_000) {
                world.queue(at, 1, *size);
            }
        }
        for (who, size, jobs, chunks) in steps {
            if (2..5).contains(&who) {
                world.queue(who, 3, size);
            }
            world.claim(Wanted { jobs, chunks }, &[]);
            let share = |at: usize| world.got[at] as f64 / f64::from(weights[at]);
            let quantum = |at: usize| 2.0 * 200.0 / f64::from(weights[at]);
            // In one claim a portion may hold fewer chunks than its first job made expect.
            let claim = 5.0 * 200.0 / f64::from(weights[0].min(weights[1]));
            let apart = (share(0) - share(1)).abs();
            prop_assert!(apart <= quantum(0) + quantum(1) + claim, "{apart}");
        }
    }

    /// The same to a job of each, where the jobs of a namespace are alike.
    #[test]
    fn where_jobs_are_alike_shares_are_kept_within_one(
        weights in prop::collection::vec(1..20_u32, 5),
        sizes in prop::collection::vec(1..200_i64, 5),
        steps in prop::collection::vec((0..8_usize, 1..40_i64, 0..300_i64), 1..120),
    ) {
        let mut world = World::new(&weights);
        for at in [0, 1] {
            world.queue(at, 6_000, sizes[at]);
        }
        for (who, jobs, chunks) in steps {
            if (2..5).contains(&who) {
                world.queue(who, 3, sizes[who]);
            }
            world.claim(Wanted { jobs, chunks }, &[]);
            let share = |at: usize| world.got[at] as f64 / f64::from(weights[at]);
            let quantum = |at: usize| sizes[at] as f64 / f64::from(weights[at]);
            let apart = (share(0) - share(1)).abs();
            prop_assert!(apart <= quantum(0) + quantum(1) + 1e-3, "{apart}");
        }
    }

    /// One that comes anew waits for nobody who is there, and gets no more than
    /// its share of what follows.
    #[test]
    fn who_was_idle_comes_next_and_has_no_credit(
        weights in prop::collection::vec(1..20_u32, 5),
        size in 1..200_i64, before in 1..60_usize, after in 1..60_usize,
    ) {
        let mut world = World::new(&weights);
        for at in [0, 1] {
            world.queue(at, 6_000, size);
        }
        for _ in 0..before {
            world.claim(ONE, &[]);
        }
        world.queue(2, 6_000, size);
        world.got = vec![0; NAMES.len()];
        prop_assert_eq!(world.claim(ONE, &["a", "b"]), ["c"]);
        for _ in 0..after {
            world.claim(ONE, &[]);
        }
        for at in [0, 1] {
            let share = |at: usize| world.got[at] as f64 / f64::from(weights[at]);
            let quantum = |at: usize| size as f64 / f64::from(weights[at]);
            prop_assert!(share(2) - share(at) <= quantum(2) + quantum(at) + 1e-3);
        }
    }
}
