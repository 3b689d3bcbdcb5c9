use super::*;
use crate::plan::{Chunk, ChunkKey};

fn batch(texts: &[&str]) -> Arc<Batch> {
    let chunks = texts.iter().map(|&text| Chunk {
        key: ChunkKey {
            item_id: text.to_owned(),
            chunk_index: 0,
            text_hash: Vec::new(),
        },
        text: text.to_owned(),
    });
    Arc::new(Batch {
        seq: 1,
        chunks: chunks.collect(),
    })
}

fn queue(batches: &[&[&str]]) -> Queue {
    let mut queue = Queue::default();
    for (request, texts) in (0..).zip(batches) {
        queue.push(request, &batch(texts));
    }
    queue
}

fn words(texts: &[Text]) -> Vec<&str> {
    texts.iter().map(Text::as_str).collect()
}

const FOUR: CallSize = CallSize {
    texts: 4,
    tokens: 1_000,
};

#[test]
fn calls_take_the_texts_in_turn_whosever_they_are() {
    let mut queue = queue(&[&["a", "b"], &["c", "d", "e"]]);
    assert!(queue.fills(FOUR));
    assert_eq!(
        words(&queue.next(FOUR).unwrap().texts),
        ["a", "b", "c", "d"]
    );
    assert!(!queue.fills(FOUR), "more would fit");
    assert_eq!(words(&queue.next(FOUR).unwrap().texts), ["e"]);
    assert_eq!(queue.next(FOUR), None);
    assert!(queue.is_empty());
}

#[test]
fn a_call_is_full_when_the_next_text_is_too_large_for_it() {
    let size = CallSize {
        texts: 10,
        tokens: 4,
    };
    let queue_of = |texts: &[&str]| queue(&[texts]);
    assert!(queue_of(&["12345678", "12345678", "1"]).fills(size));
    assert!(!queue_of(&["12345678", "1"]).fills(size));
}

#[test]
fn a_culprit_is_searched_by_halves_and_the_innocent_are_free_at_once() {
    let mut queue = queue(&[&["a", "b", "c", "d"], &["later"]]);
    let refused = queue.next(FOUR).unwrap();
    queue.search(refused.texts);
    let half = queue.next(FOUR).unwrap();
    assert_eq!(
        (words(&half.texts), words(&half.rest)),
        (vec!["a", "b"], vec!["c", "d"])
    );
    // The first half is refused, so nothing speaks against the other.
    queue.put_back(half.rest);
    queue.search(half.texts);
    assert_eq!(words(&queue.next(FOUR).unwrap().texts), ["a"]);
    assert_eq!(words(&queue.next(FOUR).unwrap().texts), ["c", "d", "later"]);
}

#[test]
fn withdrawing_leaves_what_others_wait_for() {
    let mut queue = queue(&[&["a", "b"], &["c", "d"]]);
    let refused = queue.next(FOUR).unwrap();
    queue.search(refused.texts);
    queue.withdraw(0);
    let call = queue.next(FOUR).unwrap();
    assert_eq!(
        (words(&call.texts), call.rest),
        (vec!["c", "d"], Vec::new())
    );
    assert!(queue.is_empty());
}

#[test]
fn a_call_comes_apart_by_request() {
    let mut queue = queue(&[&["a", "b"], &["c"]]);
    let call = queue.next(FOUR).unwrap();
    assert!(call.is_shared());
    queue.part(&call.texts);
    assert_eq!(words(&queue.next(FOUR).unwrap().texts), ["a", "b"]);
    let alone = queue.next(FOUR).unwrap();
    assert_eq!(words(&alone.texts), ["c"]);
    assert!(!alone.is_shared());
    assert!(queue.is_empty());
}

#[test]
fn a_text_is_shortened_at_a_character_and_never_to_nothing() {
    let mut queue = queue(&[&["äöüß"]]);
    let text = queue.next(FOUR).unwrap().texts.pop().unwrap();
    assert!(!text.is_short());
    let half = text.shortened(2).unwrap();
    assert_eq!((half.as_str(), half.is_short()), ("äö", true));
    let quarter = half.shortened(2).unwrap();
    assert_eq!(quarter.as_str(), "ä");
    assert_eq!(half.shortened(3), None);
    assert_eq!(quarter.shortened(0), None, "no character is left");
}
