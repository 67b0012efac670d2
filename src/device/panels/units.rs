//! What multiplies on this CPU.

use super::tile::{Lines, Tile, WHOLE};
use super::{Pair, Step, portable};

#[cfg(target_arch = "x86_64")]
use super::amx::Tiles;
#[cfg(target_arch = "x86_64")]
use super::avx512::Bf16Vectors;
#[cfg(target_arch = "x86_64")]
pub use super::avx512::F32Vectors;

/// What multiplies rows with some steps of a panel, on one thread.
pub trait Unit<S: Step> {
    /// Rows of `x` that were packed end with rows of zeros up to a multiple of it.
    const ROWS: usize;

    /// `y (+)= x w`: `x` holds at least as many rows as `y`, and the steps of `w`, which is `[steps][48]`.
    fn product(&self, y: &mut Tile, x: Lines<S>, w: &[S], add: bool);
}

/// The two that multiply f32.
pub enum Single {
    /// Vectors of 16.
    Avx512(F32Vectors),
    /// Any.
    Portable,
}

impl Single {
    /// The quicker that this CPU has.
    pub fn load() -> Single {
        F32Vectors::load().map_or(Single::Portable, Single::Avx512)
    }
}

impl Unit<f32> for Single {
    const ROWS: usize = 1;

    fn product(&self, y: &mut Tile, x: Lines<f32>, w: &[f32], add: bool) {
        match self {
            Single::Avx512(vectors) => vectors.product(y, x, w, add),
            Single::Portable => portable::product(y, x, w, add),
        }
    }
}

/// The three that multiply bf16.
pub enum Half {
    /// The tile registers of recent Xeons.
    Amx(Tiles),
    /// The vectors that have an instruction for it.
    Avx512(Bf16Vectors),
    /// Any.
    Portable,
}

impl Half {
    /// The quickest that this CPU has.
    pub fn load() -> Half {
        Tiles::load().map_or_else(Half::without_tiles, Half::Amx)
    }

    /// The quickest beside tiles.
    pub fn without_tiles() -> Half {
        Bf16Vectors::load().map_or(Half::Portable, Half::Avx512)
    }
}

impl Unit<Pair> for Half {
    const ROWS: usize = WHOLE;

    fn product(&self, y: &mut Tile, x: Lines<Pair>, w: &[Pair], add: bool) {
        match self {
            Half::Amx(tiles) => tiles.product(y, x, w, add),
            Half::Avx512(vectors) => vectors.product(y, x, w, add),
            Half::Portable => portable::product(y, x, w, add),
        }
    }
}

/// What multiplies bf16 on this CPU, where there is an instruction for it.
pub fn bf16_unit() -> Option<&'static str> {
    match Half::load() {
        Half::Amx(_) => Some("AMX-BF16"),
        Half::Avx512(_) => Some("AVX512-BF16"),
        Half::Portable => None,
    }
}

/// What multiplies f32 on this CPU, where packed weights are the quicker ones. Without AVX-512 `gemm` is, for many rows.
pub fn f32_unit() -> Option<&'static str> {
    match Single::load() {
        Single::Avx512(_) => Some("AVX-512"),
        Single::Portable => None,
    }
}

/// Other CPUs have none of these.
#[cfg(not(target_arch = "x86_64"))]
mod absent {
    use super::{Lines, Tile};

    macro_rules! absent {
        ($($name:ident),*) => {$(
            pub enum $name {}

            impl $name {
                pub fn load() -> Option<$name> {
                    None
                }

                pub fn product<S>(&self, _: &mut Tile, _: Lines<S>, _: &[S], _: bool) {
                    match *self {}
                }

                pub fn spin(&self, _: usize) -> usize {
                    match *self {}
                }
            }
        )*};
    }
    absent!(Tiles, F32Vectors, Bf16Vectors);
}

#[cfg(not(target_arch = "x86_64"))]
pub use absent::F32Vectors;
#[cfg(not(target_arch = "x86_64"))]
use absent::{Bf16Vectors, Tiles};
