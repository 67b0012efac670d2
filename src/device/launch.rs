//! What a launch is made of, for whichever driver: how it is spread, its arguments, the maps of its tensors.

pub use ptx_emulator::Swizzle;

/// How a kernel is spread over a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks in a cluster, which run together, 8 at most; 1 each for none.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// May begin while the kernel before it ends (it then waits itself, by `griddepcontrol`).
    pub overlap: bool,
    /// Its blocks go on until all is done, however few they are: no more are started than the GPU holds at a time.
    pub persistent: bool,
}

impl Launch {
    /// Blocks and threads along x, nothing else.
    pub fn line(blocks: usize, threads: usize) -> Launch {
        Launch::plane([blocks, 1], [threads, 1])
    }

    /// Blocks and threads along x and y.
    pub fn plane(grid: [usize; 2], block: [usize; 2]) -> Launch {
        // What does not fit 32 bits no GPU takes: it says so itself.
        let cut = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let all = |xy: [usize; 2]| [cut(xy[0]), cut(xy[1]), 1];
        Launch {
            grid: all(grid),
            block: all(block),
            cluster: [1; 3],
            shared: 0,
            overlap: false,
            persistent: false,
        }
    }

    /// Blocks along x, y and z, threads along x.
    pub fn cube([x, y, z]: [usize; 3], threads: usize) -> Launch {
        let [depth, ..] = Launch::plane([z, 1], [1, 1]).grid;
        let mut launch = Launch::plane([x, y], [threads, 1]);
        launch.grid[2] = depth;
        launch
    }

    /// Persistent clusters of blocks along x, at most so many.
    pub fn clusters(clusters: usize, blocks: usize, threads: usize, shared: i32) -> Launch {
        let line = Launch::line(clusters * blocks, threads);
        let [along, ..] = Launch::line(blocks, 1).grid;
        Launch { cluster: [along, 1, 1], shared: shared.unsigned_abs(), persistent: true, ..line }
    }
}

/// A value of a kernel's parameter list.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// An array that is not there.
    Null,
    /// An address on the device.
    Address(u64),
    /// `int`.
    I32(i32),
    /// `unsigned`.
    U32(u32),
    /// `long long`.
    I64(i64),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
    /// `double`.
    F64(f64),
    /// `const __grid_constant__ CUtensorMap`.
    Map(&'a TensorMap),
    /// A struct by value.
    Bytes(&'a [u8]),
}

/// How the tensor memory accelerator finds the tiles of an array: 128 opaque bytes from the driver.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorMap(pub [u64; 16]);

/// What a [`TensorMap`] describes, innermost dimension first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// bf16 if not f32.
    pub float: bool,
    /// Elements along each dimension, at most 5.
    pub sizes: Vec<u64>,
    /// Bytes from one element to the next, of every dimension but the innermost; multiples of 16.
    pub strides: Vec<u64>,
    /// Elements of a tile along each dimension, at most 256.
    pub tile: Vec<u32>,
    /// Layout of the tile.
    pub swizzle: Swizzle,
}
