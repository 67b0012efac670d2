//! What multiplies on this CPU.

use super::portable;
use super::step::{Pair, Step, Wide};
use super::tile::{Lines, Tile};

#[cfg(target_arch = "x86_64")]
use super::amx::Tiles;
#[cfg(target_arch = "x86_64")]
use super::avx2::Vectors256;
#[cfg(target_arch = "x86_64")]
use super::avx512::Bf16Vectors;
#[cfg(target_arch = "x86_64")]
pub use super::avx512::F32Vectors;

/// What multiplies rows with some steps of a panel, on one thread.
pub trait Unit<S: Step> {
    /// Whether rows of `x` are packed in tiles, 16 rows by 16 steps, one after the other along the steps; rows of zeros end them,
    /// up to a multiple of 32.
    fn tiled(&self) -> bool {
        false
    }

    /// Rows that it is given together at most: a panel is fetched once for so many, backward also turned. A multiple of 32.
    fn rows(&self) -> usize {
        512
    }

    /// Steps that are summed from zero before they are added to `y`: with it a row's sum is the same whatever is beside it. A
    /// multiple of 48, of which a panel of f32 turned makes so many, and of bf16 half, and of 16, which AMX's tiles take.
    fn depth(&self) -> usize {
        480
    }

    /// `y (+)= x w`: `x` holds at least as many rows as `y`, and the steps of `w`, which is `[steps][48]`. The cache may fetch
    /// `next` meanwhile: it is of use right after.
    fn product(&self, y: &mut Tile, x: Lines<S>, w: &[S], add: bool, next: &[u8]);
}

/// The three that multiply f32.
pub enum Single {
    /// Vectors of 16.
    Avx512(F32Vectors),
    /// Vectors of 8.
    Avx2(Vectors256),
    /// Any.
    Portable,
}

impl Single {
    /// The quickest that this CPU has.
    pub fn load() -> Single {
        F32Vectors::load().map_or_else(Single::narrow, Single::Avx512)
    }

    /// The quickest beside AVX-512.
    pub fn narrow() -> Single {
        Vectors256::load().map_or(Single::Portable, Single::Avx2)
    }
}

impl Unit<f32> for Single {
    fn depth(&self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Single::Avx2(_) => super::avx2::DEPTH,
            _ => 480,
        }
    }

    fn product(&self, y: &mut Tile, x: Lines<f32>, w: &[f32], add: bool, next: &[u8]) {
        match self {
            Single::Avx512(vectors) => vectors.product(y, x, w, add),
            Single::Avx2(vectors) => vectors.product(y, x, w, add, next),
            Single::Portable => portable::product(y, x, w, add),
        }
    }
}

impl Unit<Wide> for Single {
    fn depth(&self) -> usize {
        Unit::<f32>::depth(self)
    }

    fn product(&self, y: &mut Tile, x: Lines<Wide>, w: &[Wide], add: bool, next: &[u8]) {
        let x = Lines { steps: bytemuck::cast_slice(x.steps), stride: x.stride, step: x.step };
        Unit::<f32>::product(self, y, x, bytemuck::cast_slice(w), add, next);
    }
}

/// The two that multiply pairs of bf16.
pub enum Half {
    /// The tile registers of recent Xeons.
    Amx(Tiles),
    /// The vectors that have an instruction for it.
    Avx512(Bf16Vectors),
}

impl Half {
    /// The quicker that this CPU has, if it has one.
    pub fn find() -> Option<Half> {
        Tiles::load().map(Half::Amx).or_else(Half::without_tiles)
    }

    /// The one beside tiles.
    pub fn without_tiles() -> Option<Half> {
        Bf16Vectors::load().map(Half::Avx512)
    }

    /// The quicker, where [`bf16_unit`] has named it.
    pub fn load() -> Half {
        Half::find().unwrap_or_else(|| unreachable!("asked for where there is one"))
    }
}

impl Unit<Pair> for Half {
    fn tiled(&self) -> bool {
        matches!(self, Half::Amx(_))
    }

    fn rows(&self) -> usize {
        if self.tiled() { 256 } else { 512 }
    }

    fn product(&self, y: &mut Tile, x: Lines<Pair>, w: &[Pair], add: bool, _: &[u8]) {
        match self {
            Half::Amx(tiles) => tiles.product(y, x, w, add),
            Half::Avx512(vectors) => vectors.product(y, x, w, add),
        }
    }
}

/// What multiplies bf16 on this CPU, where there is an instruction for it.
pub fn bf16_unit() -> Option<&'static str> {
    Some(match Half::find()? {
        Half::Amx(_) => "AMX-BF16",
        Half::Avx512(_) => "AVX512-BF16",
    })
}

/// What multiplies f32 on this CPU, where packed weights are the quicker ones. On others `gemm` is.
pub fn f32_unit() -> Option<&'static str> {
    match Single::load() {
        Single::Avx512(_) => Some("AVX-512"),
        Single::Avx2(_) => Some("AVX2"),
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
    absent!(Tiles, Vectors256, F32Vectors, Bf16Vectors);
}

#[cfg(not(target_arch = "x86_64"))]
pub use absent::F32Vectors;
#[cfg(not(target_arch = "x86_64"))]
use absent::{Bf16Vectors, Tiles, Vectors256};
