//! MT19937 with the draws of NumPy's `RandomState`: MTEB and scikit-learn choose their samples, starts and batches by it.

const WORDS: usize = 624;
/// A word is made of itself, the next, and the one so far on.
const AHEAD: usize = 397;

/// The Mersenne Twister (Matsumoto & Nishimura, 1998), seeded and drawn from as `numpy.random.RandomState(seed)`.
#[derive(Clone)]
pub struct Mersenne {
    state: [u32; WORDS],
    used: usize,
}

impl Mersenne {
    /// The generator of `RandomState(seed)`.
    pub fn new(seed: u32) -> Mersenne {
        let mut state = [seed; WORDS];
        for i in 1..WORDS {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Mersenne { state, used: WORDS }
    }

    /// The generator of Python's `random.Random(seed)`.
    pub fn python(seed: u32) -> Mersenne {
        let (mut state, mut i) = (Mersenne::new(19_650_218).state, 1);
        for round in 1..2 * WORDS {
            let last = state[i - 1];
            let mixed = |factor| state[i] ^ (last ^ (last >> 30)).wrapping_mul(factor);
            state[i] = match round <= WORDS {
                true => mixed(1_664_525u32).wrapping_add(seed),
                false => mixed(1_566_083_941).wrapping_sub(i as u32),
            };
            i += 1;
            if i == WORDS {
                (state[0], i) = (state[WORDS - 1], 1);
            }
        }
        state[0] = 0x8000_0000;
        Mersenne { state, used: WORDS }
    }

    /// One of `choices(range(n))`.
    pub fn index(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// Python's `sample(range(n), k)`, k at most n.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        // As it draws, by the top bits of a word, those too large thrown away.
        let mut below = |n: usize| {
            let bits = u32::try_from(n).map_or(32, |n| u32::BITS - n.leading_zeros());
            loop {
                let value = (self.word() >> (32 - bits)) as usize;
                if value < n {
                    return value;
                }
            }
        };
        let (mut table, mut power) = (21, 1);
        if k > 5 {
            while power < 3 * k {
                power *= 4;
            }
            table += power;
        }
        if n <= table {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k).map(|i| pool.swap_remove(below(n - i))).collect();
        }
        let mut taken = std::collections::HashSet::new();
        let mut another = || loop {
            let value = below(n);
            if taken.insert(value) {
                return value;
            }
        };
        (0..k).map(|_| another()).collect()
    }

    fn twist(&mut self) {
        for i in 0..WORDS {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7FFF_FFFF);
            let odd = if joined & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[i] = self.state[(i + AHEAD) % WORDS] ^ (joined >> 1) ^ odd;
        }
        self.used = 0;
    }

    fn word(&mut self) -> u32 {
        if self.used == WORDS {
            self.twist();
        }
        let mut y = self.state[self.used];
        self.used += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    /// `random_sample()`: 53 bits in [0, 1).
    pub fn unit(&mut self) -> f64 {
        let (high, low) = (self.word() >> 5, self.word() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// `randint(0, n)`: words are masked and those too large thrown away; for `n` = 1 none is drawn.
    pub fn below(&mut self, n: usize) -> usize {
        let last = u32::try_from(n - 1).expect("fewer than 2^32 rows");
        if last == 0 {
            return 0;
        }
        let mask = u32::MAX >> last.leading_zeros();
        loop {
            let value = self.word() & mask;
            if value <= last {
                return value as usize;
            }
        }
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `choice(len, p=cumulative's steps)`: a row by the running sums of the rows' weights.
    pub fn choice(&mut self, cumulative: &[f64]) -> usize {
        let drawn = self.unit();
        cumulative.partition_point(|&sum| sum <= drawn).min(cumulative.len() - 1)
    }
}
