//! One file per op: its contract, its dispatch, its CPU function. An op never calls another op.

pub mod adamw;
pub mod add;
pub mod attention;
pub mod clock;
pub mod contrastive;
pub mod dropout;
pub mod embed;
pub mod finite;
pub mod l2norm;
pub mod lora_linear;
pub mod masked_xent;
pub mod narrow;
pub mod pool;
pub mod rmsnorm;
pub mod rope;
pub mod swiglu;

/// About so many blocks share the tiles of a loss's matrix.
const BLOCKS: usize = 1024;

/// Of a matrix of `rows` by `columns` in square tiles: how many of a row of tiles a block goes through, and blocks for it.
fn shares(rows: usize, columns: usize, tile: usize) -> [usize; 2] {
    let (rows, columns) = (rows.div_ceil(tile), columns.div_ceil(tile));
    let tiles = (rows * columns).div_ceil(BLOCKS).min(columns);
    [tiles, columns.div_ceil(tiles)]
}

/// The most elements of [blocks for a row of tiles, rows] that [`shares`] makes of at most so many rows: fewer are cut into more.
fn most_shares(rows: usize, columns: usize, tile: usize) -> usize {
    (columns.div_ceil(tile) * rows).min(BLOCKS * tile + rows.next_multiple_of(tile))
}
