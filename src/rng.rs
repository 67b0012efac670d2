//! Philox4x32: random numbers from a counter, equal on every device (Salmon et al., SC 2011). Ten rounds, but for the
//! dropout masks, which are drawn by seven ([`crate::ops::dropout`]).

/// The ten-round Philox bijection of a 128-bit counter under a 64-bit key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut lanes = counter.map(|word| [word.into()]);
    philox_wide::<10, 1>(&mut lanes, key);
    lanes.map(|[word]| word as u32)
}

/// Philox of `ROUNDS` rounds of `W` counters side by side, word by word in the low halves of 64 bits, so that it vectorises.
///
/// High halves are ignored, and hold anything afterwards.
#[inline(always)]
pub fn philox_wide<const ROUNDS: usize, const W: usize>(counter: &mut [[u64; W]; 4], mut key: [u32; 2]) {
    const LOW: u64 = 0xFFFF_FFFF;
    for _ in 0..ROUNDS {
        let (k0, k1) = (u64::from(key[0]), u64::from(key[1]));
        let [c0, c1, c2, c3] = &mut *counter;
        for ((c0, c1), (c2, c3)) in c0.iter_mut().zip(c1).zip(c2.iter_mut().zip(c3)) {
            let a = (*c0 & LOW) * 0xD251_1F53;
            let b = (*c2 & LOW) * 0xCD9E_8D57;
            (*c0, *c1) = ((b >> 32) ^ *c1 ^ k0, b);
            (*c2, *c3) = ((a >> 32) ^ *c3 ^ k1, a);
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
}

/// The words of one stream, one after the other: counter 0, 1, 2, … in front of three words that name the stream.
pub struct Stream {
    key: [u32; 2],
    name: [u32; 3],
    block: u32,
    words: [u32; 4],
    left: usize,
}

impl Stream {
    /// The stream `name` under `seed`; it has 2^34 words.
    pub fn new(seed: u64, name: [u32; 3]) -> Stream {
        Stream { key: [seed as u32, (seed >> 32) as u32], name, block: 0, words: [0; 4], left: 0 }
    }

    fn word(&mut self) -> u32 {
        if self.left == 0 {
            self.words = philox([self.block, self.name[0], self.name[1], self.name[2]], self.key);
            self.block = self.block.wrapping_add(1);
            self.left = 4;
        }
        self.left -= 1;
        self.words[3 - self.left]
    }

    /// A number below `n`, every one equally likely (Lemire, 2019).
    pub fn below(&mut self, n: u32) -> u32 {
        loop {
            let product = u64::from(self.word()) * u64::from(n);
            // 2^32 mod n of the low words would come up once too often.
            if product as u32 >= n.wrapping_neg() % n {
                return (product >> 32) as u32;
            }
        }
    }

    /// Fisher and Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

/// `n` standard normal numbers from `seed`, by Box and Muller: inputs of tests and benches.
pub fn normal(seed: u64, n: usize) -> Vec<f64> {
    let key = [seed as u32, (seed >> 32) as u32];
    let unit = |bits: u32| (f64::from(bits) + 0.5) / 4_294_967_296.0;
    (0..n.div_ceil(2))
        .flat_map(|i| {
            let r = philox([i as u32, (i as u64 >> 32) as u32, 0, 0], key);
            let (radius, angle) = ((-2.0 * unit(r[0]).ln()).sqrt(), std::f64::consts::TAU * unit(r[1]));
            [radius * angle.cos(), radius * angle.sin()]
        })
        .take(n)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{philox, philox_wide};

    const DIGITS: ([u32; 4], [u32; 2]) =
        ([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);

    /// The known answers published with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let (counter, key) = DIGITS;
        assert_eq!(philox(counter, key), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    /// Those of philox4x32 7.
    #[test]
    fn known_answers_of_seven_rounds() {
        let seven = |counter: [u32; 4], key| {
            let mut lanes = counter.map(|word| [u64::from(word); 3]);
            philox_wide::<7, 3>(&mut lanes, key);
            lanes.map(|[a, b, c]| {
                assert!(a as u32 == b as u32 && b as u32 == c as u32);
                a as u32
            })
        };
        assert_eq!(seven([0; 4], [0; 2]), [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]);
        assert_eq!(seven([!0; 4], [!0; 2]), [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]);
        let (counter, key) = DIGITS;
        assert_eq!(seven(counter, key), [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a]);
    }
}
