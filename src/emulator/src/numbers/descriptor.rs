//! Where `wgmma` finds its operands in shared memory: the matrix descriptor of the PTX ISA, "Shared Memory Matrix
//! Layout" and "Matrix Descriptor Format".
//!
//! | bits   | field                                                             |
//! |--------|-------------------------------------------------------------------|
//! | 0..14  | address of the first element, in 16 bytes                         |
//! | 16..30 | leading-dimension offset, in 16 bytes                             |
//! | 32..46 | stride-dimension offset, in 16 bytes                              |
//! | 49..52 | base offset: bits 7..10 of the address where the pattern starts   |
//! | 62..64 | swizzle: 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes              |
//!
//! An operand is made of rows of W bytes, W being the swizzle's width; eight rows are one atom. K-major (rows are
//! those of A, or columns of B): row r, 16-byte chunk c of the 32 bytes along k stands at
//!
//! ```text
//! none     16 (r % 8) + stride (r / 8) + leading c
//! swizzled  W (r % 8) + stride (r / 8) + 16 c
//! ```
//!
//! MN-major (a row is one k, and runs along m or n): k, chunk c along m or n stands at
//!
//! ```text
//! none     16 (k % 8) + leading (k / 8) + stride c
//! swizzled  W (k % 8) + stride (k / 8) + 16 (c % (W/16)) + leading (c / (W/16))
//! ```
//!
//! Then bits 4 and up of that address are xored with bits 7 and up: as many as the width has (3, 2, 1), counted from
//! where the pattern starts.

/// Bytes of a chunk: what stays together under every swizzle.
pub const CHUNK: usize = 16;

/// A read descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    base: u32,
    /// The swizzle's width; 16 where there is none.
    width: u32,
}

impl Descriptor {
    /// From the register; the error says what is wrong with it.
    pub fn read(bits: u64) -> Result<Descriptor, String> {
        let field = |at: u32| ((bits >> at & 0x3fff) as u32) << 4;
        let width = [16, 128, 64, 32][(bits >> 62) as usize];
        let base = (bits >> 49 & 7) as u32;
        let descriptor = Descriptor { start: field(0), leading: field(16), stride: field(32), base, width };
        let reserved = bits & !(0x3fff | 0x3fff << 16 | 0x3fff << 32 | 7 << 49 | 3 << 62);
        if reserved != 0 {
            return Err(format!("descriptor {bits:#018x}: bits {reserved:#x} must be zero"));
        }
        // The ISA counts the pattern from its base offset; inside an atom only the chunk may move.
        let phase = descriptor.start >> 7 & descriptor.mask();
        if phase != base & descriptor.mask() {
            return Err(format!(
                "misaligned: descriptor {bits:#018x} starts at {:#x}, row {phase} of a pattern of {width}-byte swizzle \
                 that repeats every {} bytes, and its base offset says {base}",
                descriptor.start,
                8 * width
            ));
        }
        Ok(descriptor)
    }

    /// Rows after which the pattern repeats, less one.
    fn mask(&self) -> u32 {
        self.width / 16 - 1
    }

    /// Where the chunk at a linear offset really is.
    fn swizzle(&self, offset: u32) -> u32 {
        let at = self.start.wrapping_add(offset);
        at ^ ((at >> 7).wrapping_sub(self.base) & self.mask()) << 4
    }

    /// K-major: chunk `c` of row `r`.
    pub fn along_k(&self, r: u32, c: u32) -> u32 {
        let step = if self.width == 16 { self.leading } else { CHUNK as u32 };
        self.swizzle(self.width * (r % 8) + self.stride * (r / 8) + step * c)
    }

    /// MN-major: chunk `c` of row `k`.
    pub fn across_k(&self, k: u32, c: u32) -> u32 {
        let chunks = self.width / 16;
        let (eight, panel) =
            if self.width == 16 { (self.leading, self.stride) } else { (self.stride, self.leading) };
        self.swizzle(self.width * (k % 8) + eight * (k / 8) + 16 * (c % chunks) + panel * (c / chunks))
    }
}
