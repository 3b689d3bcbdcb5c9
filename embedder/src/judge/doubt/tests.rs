//! How many failures prove something, by what was seen before.

use super::*;
use crate::judge::{Answer, Call, CallSize, Hint, Judge, Settings, TextId};

fn needed(doubt: &Doubt, kind: Kind) -> u32 {
    let mut failures = Failures::default();
    while !doubt.proves(failures, false) {
        failures.add(kind);
    }
    failures.total()
}

fn seen(passes: usize, whims: u32, kind: Kind) -> Doubt {
    let mut doubt = Doubt::default();
    doubt.passed(passes, 1);
    for _ in 0..whims {
        let mut failures = Failures::default();
        failures.add(kind);
        doubt.contradicted(failures);
    }
    doubt
}

#[test]
fn the_more_calls_were_seen_the_fewer_failures_prove_something() {
    let needed = [0, 30, 100, 300, 1_500].map(|passes| {
        let doubt = seen(passes, 0, Kind::Single);
        needed(&doubt, Kind::Single)
    });
    assert_eq!(needed, [7, 6, 5, 4, 3]);
}

#[test]
fn what_fails_for_nothing_has_to_fail_more_often() {
    // Of calls of which one in eight fails, ten in a row do once in a thousand million times.
    let once = |whims| needed(&seen(8 * whims as usize, whims, Kind::Single), Kind::Single);
    assert_eq!([0, 1, 10, 100].map(once), [7, 8, 9, 10]);
}

#[test]
fn a_failure_between_calls_that_pass_proves_more_where_failures_come_together() {
    let doubt = seen(500, 100, Kind::Down);
    assert_eq!(needed(&doubt, Kind::Single), 4);
    assert!(needed(&doubt, Kind::Down) > 10);
    // One of some may have been on its own.
    let doubt = seen(500, 100, Kind::OneOfSome);
    assert!(needed(&doubt, Kind::Single) > 10);
}

#[test]
fn what_failed_after_a_text_that_is_harmless_was_a_whim() {
    let mut doubt = seen(200, 0, Kind::Single);
    let mut guilty = Failures::default();
    let kinds = [Kind::Single, Kind::Down, Kind::Single, Kind::Single];
    for kind in kinds {
        guilty.add(kind);
    }
    doubt.explained(guilty);
    assert_eq!(doubt.whims.total(), 1);
    // One that takes the embedder down each time explains what came after it.
    let mut deadly = Failures::default();
    (0..4).for_each(|_| deadly.add(Kind::Down));
    doubt.explained(deadly);
    assert_eq!(doubt.whims.total(), 1);
}

#[test]
fn what_came_before_and_after_tells_what_a_failure_was() {
    let mut doubt = Doubt::default();
    doubt.failed(1, 2);
    doubt.passed(1, 3);
    doubt.failed(5, 6);
    doubt.failed(7, 8);
    doubt.passed(1, 9);
    doubt.failed(11, 12);
    doubt.rested(Kind::Down);
    doubt.passed(1, 13);
    let kinds = [2, 6, 8, 12].map(|at| doubt.kind(at));
    let some = Kind::OneOfSome;
    assert_eq!(kinds, [Kind::Single, some, some, Kind::Down]);
}

#[test]
fn what_passed_right_before_all_searches_were_given_up_is_not_counted() {
    let mut doubt = seen(100, 0, Kind::Single);
    (0..30).for_each(|at| doubt.passed_beside(at));
    doubt.lost();
    assert_eq!(doubt.passes, 130 - SEARCH);
    doubt.lost();
    assert_eq!(doubt.passes, 130 - SEARCH);
}

/// A judge whose embedder passes probes, and fails a text once.
fn failed_once() -> Judge {
    let ceiling = CallSize {
        texts: 1,
        tokens: 100,
    };
    let mut judge = Judge::new(Settings {
        ceiling,
        shortest: 64,
    });
    step(&mut judge);
    judge.add(TextId(1), 100, 1, 0);
    until(&mut judge, |judge| {
        judge.texts[&TextId(1)].known.failed_once()
    });
    judge
}

/// Passes what is a probe, and nothing else.
fn step(judge: &mut Judge) {
    let call = judge.next_call().expect("there is something to send");
    let answer = match call {
        Call::Probe(..) => Answer::Vectors(vec![None]),
        Call::Embed(..) => Answer::Failed {
            hint: Hint::Unknown,
            reason: String::new(),
        },
    };
    judge.answered(call.id(), answer);
}

fn until(judge: &mut Judge, is_there: impl Fn(&Judge) -> bool) {
    for _ in 0..100 {
        if is_there(judge) {
            return;
        }
        step(judge);
    }
    panic!("it does not come to that");
}

#[test]
fn a_failure_that_is_handed_back_is_a_whim_until_it_happens_again() {
    let mut judge = failed_once();
    judge.give_up();
    for name in 1..4 {
        // Once, however often it is handed back.
        judge.remove(TextId(name));
        assert_eq!(judge.doubt.whims.singles, 1);
        judge.add(TextId(name + 1), 100, 1, 0);
    }
    until(&mut judge, |judge| judge.doubt.whims.singles == 0);
    let known = judge.texts[&TextId(4)].known;
    assert_eq!(known.whole.singles, 2);
}

#[test]
fn what_is_presumed_of_a_text_does_not_speak_for_it() {
    let mut doubt = seen(100, 0, Kind::Single);
    let mut failures = Failures::default();
    (0..5).for_each(|_| failures.add(Kind::Single));
    doubt.presume(&mut false, true);
    assert!(doubt.proves(failures, true));
    assert!(!doubt.proves(failures, false));
}

#[test]
fn vectors_that_cannot_be_used_are_no_reason_to_rest() {
    let mut judge = failed_once();
    judge.remove(TextId(1));
    (0..30).for_each(|_| judge.doubt.good_failed());
    assert!(judge.doubt.is_flaky() && !judge.flaws.is_flaky());
    judge.add(TextId(2), 100, 2, 0);
    let call = judge.next_call().expect("there is something to send");
    let flaws = match &call {
        Call::Embed(_, texts) => vec![Some("NaN".to_owned()); texts.len()],
        Call::Probe(..) => panic!("{call:?}"),
    };
    let verdicts = judge.answered(call.id(), Answer::Vectors(flaws));
    assert_eq!(verdicts, []);
}

#[test]
fn calls_that_fail_do_not_speak_for_a_text_whose_vectors_cannot_be_used() {
    let mut judge = failed_once();
    (0..300).for_each(|_| judge.doubt.good_failed());
    judge.flaws.passed(500, 1);
    let text = judge.texts.get_mut(&TextId(1)).expect("it is there");
    (0..100).for_each(|_| text.known.count(Kind::Rest, 100));
    let tries = (0..10).take_while(|_| {
        let text = judge.texts.get_mut(&TextId(1)).expect("it is there");
        text.known.count(Kind::Flaw, 100);
        !judge.is_guilty(&judge.texts[&TextId(1)])
    });
    assert_eq!(tries.count(), 3);
}
