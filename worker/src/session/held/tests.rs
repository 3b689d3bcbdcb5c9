use proptest::{collection::vec, prelude::*};

use super::*;
use crate::part::{Chunk, Embedded};

fn lease(job_id: i64) -> LeaseId {
    LeaseId { job_id, epoch: 1 }
}

/// A part with so many chunks, of a lease.
fn part(seq: i64, job_id: i64, chunks: usize) -> Part {
    let chunk = |place: usize| Chunk {
        key: ChunkKey {
            item_id: format!("{seq}"),
            chunk_index: place as i32,
            text_hash: vec![0; 32],
        },
        text: "text".to_owned(),
    };
    Part {
        seq,
        lease: lease(job_id),
        namespace: "n".to_owned(),
        source: "n/s".to_owned(),
        trace: None,
        chunks: (0..chunks).map(chunk).collect(),
    }
}

/// The result of a part of which so many chunks are embedded.
fn result(part: &Part, embedded: usize) -> PartResult {
    let mut keys = part.chunks.iter().map(|chunk| chunk.key.clone());
    let embedded = keys.by_ref().take(embedded).map(|key| Embedded {
        key,
        vector: vec![0; 8].into(),
        chars: None,
    });
    PartResult {
        seq: part.seq,
        embedded: embedded.collect(),
        rejected: Vec::new(),
        left_out: keys.collect(),
    }
}

fn held(models: usize) -> Held {
    Held::new((0..models).map(|model| model.to_string()))
}

fn sent(held: &mut Held) -> Vec<i64> {
    held.next_results().iter().map(|it| it.seq).collect()
}

#[test]
fn credit_is_granted_up_to_the_room_and_used_up_by_what_comes() {
    let mut held = held(1);
    assert_eq!(held.grant(0, 96), Some(96));
    assert_eq!(held.grant(0, 96), None, "it is granted already");
    let (_, parts) = held.receive("0", vec![part(1, 1, 40)]).unwrap();
    // They wait at the endpoint, which has less room for it.
    assert_eq!(held.grant(0, 96 - 40), None);
    assert_eq!(held.grant(0, 96 - 8), Some(32));
    assert!(held.answer(&parts[0], result(&parts[0], 40)));
    assert_eq!(held.grant(0, 96), Some(8), "answered, not acknowledged");
    held.begin();
    assert_eq!(held.grant(0, 96), Some(96), "a session begins with none");
}

#[test]
fn the_credit_of_all_models_and_what_is_held_of_them_is_bounded() {
    let share = MAX_CREDIT as usize / 3;
    let mut held = held(3);
    for model in 0..3 {
        assert_eq!(held.grant(model, usize::MAX), Some(share));
    }
    let (_, parts) = held.receive("1", vec![part(1, 1, 100)]).unwrap();
    assert_eq!(held.grant(1, usize::MAX), None);
    held.answer(&parts[0], result(&parts[0], 100));
    assert_eq!(held.grant(1, usize::MAX), None, "it is kept");
    sent(&mut held);
    held.acknowledge(1).unwrap();
    assert_eq!(held.grant(1, usize::MAX), Some(100));
}

#[test]
fn what_the_contract_rules_out_is_named_and_nothing_of_it_is_taken() {
    let mut held = held(1);
    held.grant(0, 10);
    held.receive("0", vec![part(1, 1, 2)]).unwrap();
    let model = "0".to_owned();
    for (model, parts, breach) in [
        (
            "0",
            vec![part(2, 1, 1), part(3, 1, 8)],
            Breach::OverCredit {
                model,
                sent: 9,
                credit: 8,
            },
        ),
        (
            "0",
            vec![part(2, 1, 1), part(1, 1, 1)],
            Breach::Twice { seq: 1 },
        ),
        (
            "0",
            vec![part(2, 1, 1), part(2, 1, 1)],
            Breach::Twice { seq: 2 },
        ),
        (
            "0",
            vec![part(2, 1, 1), part(3, 1, 0)],
            Breach::Empty { seq: 3 },
        ),
        (
            "9",
            vec![part(2, 1, 1)],
            Breach::UnknownModel {
                model: "9".to_owned(),
            },
        ),
    ] {
        assert_eq!(held.receive(model, parts).unwrap_err(), breach);
        let seqs: Vec<i64> = held.parts.keys().copied().collect();
        assert_eq!((seqs, held.models[0].credit), (vec![1], 8), "{breach}");
    }
}

#[test]
fn an_answer_of_a_part_that_is_gone_is_not_taken_for_another_of_its_number() {
    let mut held = held(1);
    held.grant(0, 10);
    let (_, first) = held.receive("0", vec![part(1, 1, 1)]).unwrap();
    let withdrawn = held.end(lease(1));
    assert!(Arc::ptr_eq(&withdrawn[0].1, &first[0]));
    let (_, second) = held.receive("0", vec![part(1, 2, 1)]).unwrap();
    assert!(!held.answer(&first[0], result(&first[0], 1)));
    assert!(!held.is_answered());
    assert!(held.answer(&second[0], result(&second[0], 1)));
    assert!(
        !held.answer(&second[0], result(&second[0], 0)),
        "answered once"
    );
}

#[test]
fn an_ack_without_a_result_that_was_sent_changes_nothing() {
    let mut held = held(1);
    held.grant(0, 10);
    let (_, parts) = held.receive("0", vec![part(1, 1, 3)]).unwrap();
    assert_eq!(held.acknowledge(1), None);
    assert_eq!(held.acknowledge(2), None);
    held.answer(&parts[0], result(&parts[0], 2));
    assert_eq!(held.acknowledge(1), None);
    assert_eq!(sent(&mut held), [1]);
    assert_eq!(held.acknowledge(1), Some((lease(1), 2)));
    assert_eq!(held.acknowledge(1), None);
    assert!(held.is_empty());
}

#[test]
fn every_state_names_the_chunks_it_came_with() {
    let mut held = held(1);
    held.grant(0, 10);
    let parts = vec![part(1, 1, 3), part(2, 2, 1), part(3, 1, 2)];
    let keys = |place: usize| -> Vec<ChunkKey> {
        let chunks = parts[place].chunks.iter();
        chunks.map(|chunk| chunk.key.clone()).collect()
    };
    let expected = BTreeMap::from([
        (lease(1), vec![(1, keys(0)), (3, keys(2))]),
        (lease(2), vec![(2, keys(1))]),
    ]);
    let (_, parts) = held.receive("0", parts).unwrap();
    held.answer(&parts[0], result(&parts[0], 1));
    assert_eq!(held.leases(), expected);
    assert_eq!(held.lease_ids(), expected.into_keys().collect());
}

#[test]
fn results_that_do_not_fit_a_message_go_in_the_next() {
    let mut held = held(1);
    held.grant(0, 10);
    let parts = (1..=3).map(|seq| part(seq, 1, 1)).collect();
    let (_, parts) = held.receive("0", parts).unwrap();
    let vector = vec![0; MAX_WORKER_MESSAGE_BYTES / 2 - 10_000];
    for part in parts {
        let mut result = result(&part, 1);
        result.embedded[0].vector = vector.clone().into();
        held.answer(&part, result);
    }
    assert_eq!(sent(&mut held), [1, 2]);
    assert_eq!(sent(&mut held), [3]);
    assert_eq!(sent(&mut held), Vec::<i64>::new());
}

#[test]
fn too_many_bytes_of_texts_stop_the_reading_and_of_results_the_credit() {
    let mut held = held(1);
    held.grant(0, 10);
    let mut large = part(1, 1, 1);
    large.chunks[0].text = "x".repeat(MOST_BYTES);
    assert!(held.has_room());
    let (_, parts) = held.receive("0", vec![large]).unwrap();
    assert!(!held.has_room());
    let mut result = result(&parts[0], 1);
    result.embedded[0].vector = vec![0; MOST_BYTES].into();
    held.answer(&parts[0], result);
    assert!(held.has_room());
    assert_eq!(held.grant(0, 100), None);
    sent(&mut held);
    held.acknowledge(1).unwrap();
    assert_eq!(held.grant(0, 100), Some(91));
}

#[derive(Debug, Clone)]
enum Step {
    Grant {
        model: usize,
        room: usize,
    },
    Receive {
        model: usize,
        job: i64,
        chunks: usize,
    },
    Answer {
        which: usize,
        embedded: usize,
    },
    Send,
    Acknowledge {
        which: usize,
    },
    End {
        job: i64,
    },
    Begin,
}

fn step() -> impl Strategy<Value = Step> {
    let model = 0..2_usize;
    prop_oneof![
        (model.clone(), 0..30_000_usize).prop_map(|(model, room)| Step::Grant { model, room }),
        (model, 0..5_i64, 1..3_000_usize).prop_map(|(model, job, chunks)| Step::Receive {
            model,
            job,
            chunks
        }),
        (any::<usize>(), 0..3_usize).prop_map(|(which, embedded)| Step::Answer { which, embedded }),
        Just(Step::Send),
        any::<usize>().prop_map(|which| Step::Acknowledge { which }),
        (0..5_i64).prop_map(|job| Step::End { job }),
        Just(Step::Begin),
    ]
}

proptest! {
    /// Whatever happens in whatever order: what is held and granted keeps to the
    /// limits, each part is answered once on a stream and again on the next until
    /// it is acknowledged, and nothing of a lease that has ended is sent.
    #[test]
    fn what_is_held_is_bounded_and_every_part_is_answered_once(steps in vec(step(), 1..150)) {
        let mut held = held(2);
        let mut next = 0;
        let mut embedding: Vec<Arc<Part>> = Vec::new();
        // By number: its lease, and whether it was sent on this stream.
        let mut answered: BTreeMap<i64, (LeaseId, bool)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Grant { model, room } => {
                    held.grant(model, room);
                }
                Step::Receive { model, job, chunks } => {
                    next += 1;
                    let credit = held.models[model].credit;
                    let received = held.receive(&model.to_string(), vec![part(next, job, chunks)]);
                    prop_assert_eq!(received.is_ok(), chunks <= credit);
                    if let Ok((place, parts)) = received {
                        prop_assert_eq!(place, model);
                        prop_assert_eq!(held.models[model].credit, credit - chunks);
                        embedding.extend(parts);
                    }
                }
                Step::Answer { which, embedded } => if !embedding.is_empty() {
                    let part = embedding.swap_remove(which % embedding.len());
                    prop_assert!(held.answer(&part, result(&part, embedded)));
                    answered.insert(part.seq, (part.lease, false));
                },
                Step::Send => for seq in sent(&mut held) {
                    let (_, was_sent) = answered.get_mut(&seq).expect("it is wanted");
                    prop_assert!(!*was_sent, "twice on one stream");
                    *was_sent = true;
                },
                Step::Acknowledge { which } => {
                    let seqs: Vec<i64> = held.parts.keys().copied().collect();
                    if !seqs.is_empty() {
                        let seq = seqs[which % seqs.len()];
                        let was_sent = answered.get(&seq).is_some_and(|(_, sent)| *sent);
                        prop_assert_eq!(held.acknowledge(seq).is_some(), was_sent);
                        if was_sent {
                            answered.remove(&seq);
                        }
                    }
                }
                Step::End { job } => {
                    let withdrawn = held.end(lease(job));
                    let (gone, left) = embedding.into_iter().partition(|it| it.lease == lease(job));
                    embedding = left;
                    let gone: Vec<Arc<Part>> = gone;
                    prop_assert_eq!(withdrawn.len(), gone.len());
                    answered.retain(|_, (of, _)| *of != lease(job));
                }
                Step::Begin => {
                    held.begin();
                    for (_, was_sent) in answered.values_mut() {
                        *was_sent = false;
                    }
                    prop_assert!(held.models.iter().all(|model| model.credit == 0));
                }
            }
            let seqs: BTreeSet<i64> = held.parts.keys().copied().collect();
            let expected = embedding.iter().map(|part| part.seq).chain(answered.keys().copied());
            prop_assert_eq!(seqs, expected.collect());
            prop_assert_eq!(held.is_answered(), embedding.is_empty());
            let bytes: usize = embedding.iter().map(|part| part.text_bytes()).sum();
            prop_assert_eq!(held.text_bytes, bytes);
            let chunks = |part: &HeldPart| part.chunks;
            let of_parts: usize = held.parts.values().map(chunks).sum();
            let of_models: usize = held.models.iter().map(|model| model.chunks).sum();
            prop_assert_eq!(of_parts, of_models);
            let credit: usize = held.models.iter().map(|model| model.credit).sum();
            prop_assert!(credit + of_parts <= MAX_CREDIT as usize);
        }
        let unsent: Vec<i64> = answered.iter().filter(|(_, it)| !it.1).map(|it| *it.0).collect();
        prop_assert_eq!(sent(&mut held), unsent);
        for seq in answered.into_keys() {
            held.acknowledge(seq);
        }
        prop_assert_eq!(held.result_bytes, 0);
    }
}
