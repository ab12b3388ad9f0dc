//! Small numbers, the same from the same seed.

use std::time::{SystemTime, UNIX_EPOCH};

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

/// `POSTROOM_SEED`, else the time. It is printed, for whoever wants the same again.
pub fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = std::env::var("POSTROOM_SEED").map_or(now.as_secs(), |it| it.parse().unwrap());
    eprintln!("POSTROOM_SEED={seed}");
    seed
}
