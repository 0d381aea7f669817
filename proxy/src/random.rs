//! Random numbers for names: of requests, traces and spans.
//!
//! They come from the provider of cryptography, many at once: asking it for each of them would cost more
//! than the rest of a small request's head. What was given is wiped and never given again. Nothing
//! secret is made of them.

use std::cell::RefCell;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};

/// So many random bytes. All zeros where the system has no randomness: a name is only less useful then,
/// not less safe.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    const { assert!(N <= STORE, "more than is drawn at once") };
    DRAWN.with_borrow_mut(Drawn::take)
}

/// How many bytes are drawn at once.
const STORE: usize = 1024;

thread_local! {
    static DRAWN: RefCell<Drawn> = const {
        RefCell::new(Drawn {
            bytes: [0; STORE],
            left: 0,
        })
    };
}

/// Bytes that were drawn; those at the end were given away.
struct Drawn {
    bytes: [u8; STORE],
    left: usize,
}

impl Drawn {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        if self.left < N {
            self.left = match SystemRandom::new().fill(&mut self.bytes) {
                Ok(()) => STORE,
                Err(_) => return [0; N],
            };
        }
        self.left -= N;
        let mut taken = [0; N];
        if let Some(from) = self.bytes.get_mut(self.left..self.left + N) {
            taken.copy_from_slice(from);
            from.fill(0);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{STORE, random};

    #[test]
    fn no_number_is_given_twice_however_many_are_taken() {
        let count = 4 * STORE;
        let short: HashSet<[u8; 8]> = (0..count).map(|_| random()).collect();
        let long: HashSet<[u8; 24]> = (0..count).map(|_| random()).collect();
        assert_eq!((short.len(), long.len()), (count, count));
        assert!(!short.contains(&[0; 8]) && !long.contains(&[0; 24]));
    }
}
