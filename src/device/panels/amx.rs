//! AMX tiles: 32 x 48 of a bf16 matrix product in the eight tile registers of recent Xeons.
//!
//! Written as inline assembly because the intrinsics are not stable Rust. Linux hands the tile
//! registers out on request only ([`available`] asks once for the process).

use super::PANEL;
use super::step::Pair;
use super::tile::{Lines, SIDE, Tile, WHOLE, through_a_whole_tile};
use std::arch::asm;
use std::sync::OnceLock;

/// Whether the CPU has AMX-BF16 and the kernel lets this process use it.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
        let leaves = std::arch::x86_64::__cpuid(0).eax;
        leaves >= 7
            && std::arch::x86_64::__cpuid_count(7, 0).edx & TILE_AND_BF16 == TILE_AND_BF16
            && permitted()
    })
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: asks for a permission and touches no memory; older kernels answer with an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Eight tiles of 16 rows by 64 bytes, loaded into this thread until dropped.
pub struct Tiles(());

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// None where [`available`] is false.
    pub fn load() -> Option<Tiles> {
        // SAFETY: the CPU has the instructions, and the process may use them.
        available().then(|| unsafe { Tiles::configured() })
    }

    /// Whether or not [`available`] has been asked.
    ///
    /// # Safety
    /// - the instructions for tiles are there, or someone does in their place what they say
    pub unsafe fn configured() -> Tiles {
        let mut c = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        c.bytes[..8].fill(64);
        c.rows[..8].fill(16);
        // SAFETY: `c` is a valid 64-byte configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const c, options(nostack)) };
        Tiles(())
    }

    /// `y (+)= x w`; `x` is in tiles, with rows of zeros up to a multiple of 32, `w` is some steps of a panel.
    ///
    /// A ragged tile goes through a whole one of its own, which begins with what is in `y`: a row's sum is taken in the same
    /// order in both, or its bits would say how many rows are beside it. Panics if a slice is too short or the steps are no
    /// multiple of 16.
    pub fn product(&self, y: &mut Tile, x: Lines<Pair>, w: &[Pair], add: bool) {
        for first in (0..y.rows()).step_by(WHOLE) {
            let (mut y, x) = (y.part(first..y.rows().min(first + WHOLE)), x.from(first));
            (0..y.rows()).for_each(|row| [0, 16, 32].into_iter().for_each(|column| y.fetch(row, column)));
            match y.whole() {
                // SAFETY: the tile's 32 rows of 48 numbers, which are its own.
                Some((at, stride)) => unsafe { self.whole(at, stride, x, w, add) },
                // SAFETY: 32 rows of 48 numbers.
                None => through_a_whole_tile(&mut y, add, |room| unsafe {
                    self.whole(room.as_mut_ptr(), PANEL, x, w, true);
                }),
            }
        }
    }

    /// # Safety
    /// - `y` points to 32 rows of 48 numbers, `stride` apart, that nobody else uses
    unsafe fn whole(&self, y: *mut f32, stride: usize, x: Lines<Pair>, w: &[Pair], add: bool) {
        let pairs = w.len() / PANEL;
        assert!(pairs > 0 && pairs.is_multiple_of(SIDE) && x.holds(WHOLE, pairs));
        // SAFETY: the configuration is loaded while `self` lives; the asserts bound every tile that is read or
        // written; the tile registers are declared clobbered.
        unsafe {
            asm!(
                "test {add}, {add}",
                "jz 3f",
                "tileloadd tmm0, [{y0} + {ys}*1]",
                "tileloadd tmm1, [{y0} + {ys}*1 + 64]",
                "tileloadd tmm2, [{y0} + {ys}*1 + 128]",
                "tileloadd tmm3, [{y1} + {ys}*1]",
                "tileloadd tmm4, [{y1} + {ys}*1 + 64]",
                "tileloadd tmm5, [{y1} + {ys}*1 + 128]",
                "jmp 2f",
                "3:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                "2:",
                "tileloadd tmm6, [{w} + {ws}*1]",
                "tileloadd tmm7, [{x0} + {xs}*1]",
                "tdpbf16ps tmm0, tmm7, tmm6",
                "tileloadd tmm7, [{x1} + {xs}*1]",
                "tdpbf16ps tmm3, tmm7, tmm6",
                "tileloadd tmm6, [{w} + {ws}*1 + 64]",
                "tdpbf16ps tmm4, tmm7, tmm6",
                "tileloadd tmm7, [{x0} + {xs}*1]",
                "tdpbf16ps tmm1, tmm7, tmm6",
                "tileloadd tmm6, [{w} + {ws}*1 + 128]",
                "tdpbf16ps tmm2, tmm7, tmm6",
                "tileloadd tmm7, [{x1} + {xs}*1]",
                "tdpbf16ps tmm5, tmm7, tmm6",
                "add {x0}, {x_step}",
                "add {x1}, {x_step}",
                "add {w}, {w_step}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{y0} + {ys}*1], tmm0",
                "tilestored [{y0} + {ys}*1 + 64], tmm1",
                "tilestored [{y0} + {ys}*1 + 128], tmm2",
                "tilestored [{y1} + {ys}*1], tmm3",
                "tilestored [{y1} + {ys}*1 + 64], tmm4",
                "tilestored [{y1} + {ys}*1 + 128], tmm5",
                y0 = in(reg) y,
                y1 = in(reg) y.add(SIDE * stride),
                ys = in(reg) 4 * stride,
                add = in(reg) usize::from(add),
                x0 = inout(reg) x.steps.as_ptr() => _,
                x1 = inout(reg) x.steps.as_ptr().add(SIDE * x.stride) => _,
                xs = in(reg) 4 * SIDE,
                x_step = const SIDE * 4 * SIDE,
                w = inout(reg) w.as_ptr() => _,
                ws = in(reg) 4 * PANEL,
                w_step = const SIDE * 4 * PANEL,
                steps = inout(reg) pairs / SIDE => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Tiles {
    /// So many instructions in each of six sums of tiles; gives the operations.
    pub fn spin(&self, rounds: usize) -> usize {
        assert!(rounds > 0);
        // SAFETY: the configuration is loaded while `self` lives; no memory is touched; the tile registers are declared clobbered.
        unsafe {
            asm!(
                "tilezero tmm6",
                "tilezero tmm7",
                "2:",
                "tdpbf16ps tmm0, tmm7, tmm6",
                "tdpbf16ps tmm1, tmm7, tmm6",
                "tdpbf16ps tmm2, tmm7, tmm6",
                "tdpbf16ps tmm3, tmm7, tmm6",
                "tdpbf16ps tmm4, tmm7, tmm6",
                "tdpbf16ps tmm5, tmm7, tmm6",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nomem, nostack),
            );
        }
        6 * 2 * 16 * 16 * 32 * rounds
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the configuration was loaded by `load`; releasing it touches no memory.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}
