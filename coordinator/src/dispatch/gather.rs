//! Requests that are done together: whoever is free takes all that wait, and
//! waits for no more of them.

use tokio::sync::{Mutex, mpsc};

/// Requests that wait for whoever takes them next.
#[derive(Debug)]
pub(crate) struct Gather<T> {
    waiting: Mutex<mpsc::Receiver<T>>,
}

impl<T> Gather<T> {
    /// Room for so many that wait; who sends more waits as well.
    pub(crate) fn new(room: usize) -> (mpsc::Sender<T>, Self) {
        let (sender, waiting) = mpsc::channel(room);
        let waiting = Mutex::new(waiting);
        (sender, Self { waiting })
    }

    /// Takes all that wait, at most so many and at least one. `None`: there will
    /// be no more. Of several who ask, one waits and the others wait for it;
    /// while it works on what it took, the next one takes what comes.
    pub(crate) async fn next(&self, most: usize) -> Option<Vec<T>> {
        let mut group = Vec::with_capacity(most);
        let taken = self.waiting.lock().await.recv_many(&mut group, most).await;
        (taken > 0).then_some(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_that_wait_are_taken_together_and_none_is_waited_for() {
        let (sender, gather) = Gather::new(8);
        for n in 0..5 {
            sender.send(n).await.unwrap();
        }
        assert_eq!(gather.next(3).await, Some(vec![0, 1, 2]));
        assert_eq!(gather.next(3).await, Some(vec![3, 4]));
        drop(sender);
        assert_eq!(gather.next(3).await, None);
    }
}
