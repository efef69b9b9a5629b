//! Random numbers for tests that can be repeated.

/// A small generator of random numbers (xorshift64*), so that a seed repeats a run's choices.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Says its seed; it is a new one unless `SPARKS_TEST_SEED` is set.
    pub fn seeded() -> Random {
        let seed = std::env::var("SPARKS_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_nanos() as u64 | 1
        });
        eprintln!("repeat with SPARKS_TEST_SEED={seed}");
        Random(seed)
    }

    /// The choices of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}
