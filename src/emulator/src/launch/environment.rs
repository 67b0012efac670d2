//! What special registers hold.

use super::Launch;
use super::plan::RESIDENT;
use crate::isa::operand::{LANES, Lanes};
use crate::isa::special::SPECIAL;
use crate::report::finding::coordinates;

/// What `Src::Env` means to a warp: the special registers, then the addresses of the module's variables.
pub fn environment(launch: &Launch, symbols: &[u64], block: u32, warp: u32, dynamic: usize) -> Vec<Lanes> {
    let threads: u32 = launch.block.iter().product();
    let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
    let [cx, cy, cz] = launch.cluster;
    let [x, y, z] = coordinates(block, launch.grid);
    let all = |v: u64| [v; LANES];
    let thread = |l: usize| coordinates(warp * LANES as u32 + l as u32, launch.block);
    let lanes = |f: &dyn Fn(usize) -> u32| std::array::from_fn(|l| u64::from(f(l)));
    let mut env: Vec<Lanes> = SPECIAL
        .iter()
        .map(|name| match *name {
            "%tid.x" => lanes(&|l| thread(l)[0]),
            "%tid.y" => lanes(&|l| thread(l)[1]),
            "%tid.z" => lanes(&|l| thread(l)[2]),
            "%ntid.x" => all(bx.into()),
            "%ntid.y" => all(by.into()),
            "%ntid.z" => all(bz.into()),
            "%ctaid.x" => all(x.into()),
            "%ctaid.y" => all(y.into()),
            "%ctaid.z" => all(z.into()),
            "%nctaid.x" => all(gx.into()),
            "%nctaid.y" => all(gy.into()),
            "%nctaid.z" => all(gz.into()),
            "%laneid" => lanes(&|l| l as u32),
            "%warpid" => all(warp.into()),
            "%nwarpid" => all(threads.div_ceil(LANES as u32).into()),
            "%lanemask_eq" => lanes(&|l| 1 << l),
            "%lanemask_lt" => lanes(&|l| (1 << l) - 1),
            "%lanemask_le" => lanes(&|l| (1 << l) | ((1 << l) - 1)),
            "%lanemask_gt" => lanes(&|l| !((1 << l) | ((1 << l) - 1))),
            "%lanemask_ge" => lanes(&|l| !((1 << l) - 1)),
            "%dynamic_smem_size" => all(launch.shared as u64),
            "%total_smem_size" => all((dynamic + launch.shared) as u64),
            "%nsmid" => all(RESIDENT as u64),
            "%clusterid.x" => all((x / cx).into()),
            "%clusterid.y" => all((y / cy).into()),
            "%clusterid.z" => all((z / cz).into()),
            "%nclusterid.x" => all((gx / cx).into()),
            "%nclusterid.y" => all((gy / cy).into()),
            "%nclusterid.z" => all((gz / cz).into()),
            "%cluster_ctaid.x" => all((x % cx).into()),
            "%cluster_ctaid.y" => all((y % cy).into()),
            "%cluster_ctaid.z" => all((z % cz).into()),
            "%cluster_nctaid.x" => all(cx.into()),
            "%cluster_nctaid.y" => all(cy.into()),
            "%cluster_nctaid.z" => all(cz.into()),
            "%cluster_ctarank" => all((x % cx + cx * (y % cy + cy * (z % cz))).into()),
            "%cluster_nctarank" => all((cx * cy * cz).into()),
            "%is_explicit_cluster" => all((cx * cy * cz > 1).into()),
            ".extern .shared" => all(dynamic as u64),
            // %smid, the clocks and %gridid: one processor on which no time passes.
            _ => all(0),
        })
        .collect();
    env.extend(symbols.iter().map(|address| all(*address)));
    env
}
