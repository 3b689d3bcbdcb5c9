//! The texts that clients write. Each is new and says whose it is, so that what
//! is embedded can be counted exactly.

use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};

/// A text that has this in it is refused by the embedder.
pub(crate) const POISON: &str = "poison";

/// Writes texts, no two of them with the same words. Every part of a text names
/// its item.
#[derive(Debug)]
pub(crate) struct Pen {
    client: usize,
    words: u64,
}

impl Pen {
    pub(crate) fn new(client: usize) -> Self {
        Self { client, words: 0 }
    }

    /// A word for an item, as `source/item:w00000001`: as long as any other for
    /// the same item.
    fn word(&mut self, name: &str, item_id: &str) -> String {
        self.words += 1;
        format!("{name}/{item_id}:w{}{:07}", self.client, self.words)
    }

    /// One chunk, or several, or now and then one that no embedder takes.
    pub(crate) fn text(&mut self, name: &str, item_id: &str, random: &mut StdRng) -> String {
        match random.random_range(0..100) {
            0..2 => format!("The {POISON} is {}.", self.word(name, item_id)),
            2..12 => {
                let sentence =
                    |n| format!("In sentence {n} it is {} again.", self.word(name, item_id));
                (0..8).map(sentence).collect::<Vec<_>>().join(" ")
            }
            _ => format!("The word is {}.", self.word(name, item_id)),
        }
    }

    /// Another word instead of one of a text's.
    pub(crate) fn edit(&mut self, text: &str, random: &mut StdRng) -> String {
        let words: Vec<&str> = words(text).collect();
        let word = words.choose(random).expect("every text has a word");
        let (name, item_id) = place_of(word).expect("a word names its place");
        text.replace(word, &self.word(name, item_id))
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let bare = text.split(' ').map(|word| word.trim_end_matches('.'));
    bare.filter(|word| place_of(word).is_some())
}

fn place_of(word: &str) -> Option<(&str, &str)> {
    let (place, number) = word.split_once(":w")?;
    let whole = number.len() == 8 && number.bytes().all(|b| b.is_ascii_digit());
    place.split_once('/').filter(|_| whole)
}

/// The source and the item that a text or a part of it is of.
pub(crate) fn place_of_text(text: &str) -> Option<(&str, &str)> {
    words(text).find_map(place_of)
}

#[test]
fn every_part_of_a_text_names_its_place_and_no_word_comes_twice() {
    use rand::SeedableRng as _;

    let mut random = StdRng::seed_from_u64(1);
    let mut pen = Pen::new(0);
    let text = pen.text("source", "item", &mut random);
    let edited = pen.edit(&text, &mut random);
    assert_eq!(text.len(), edited.len());
    for text in [&text, &edited] {
        assert_eq!(place_of_text(text), Some(("source", "item")));
    }
    let changed = words(&text).zip(words(&edited)).filter(|(a, b)| a != b);
    assert_eq!(changed.count(), 1);
    assert_eq!(place_of_text("The word is source/item:w0000000"), None);
}
