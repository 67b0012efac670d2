//! Clusters in x, y and z: who is where in them, what other blocks of them hold, and launches that the driver refuses.

use super::*;

/// Each block leaves its special registers, and the coordinates that its peers hold in shared memory, by rank.
const PTX: &str = ".version 9.0\n.target sm_90a\n.address_size 64\n\
    .visible .entry k(.param .u64 out)\n{\n\
    .reg .b32 %r<40>; .reg .b64 %d<4>; .reg .pred %p<3>; .shared .align 4 .b32 s;\n\
    mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ctaid.y; mov.u32 %r2, %ctaid.z;\n\
    mov.u32 %r3, %nctaid.x; mov.u32 %r4, %nctaid.y;\n\
    mad.lo.u32 %r5, %r2, %r4, %r1; mad.lo.u32 %r5, %r5, %r3, %r0;\n\
    st.shared.u32 [s], %r5;\nbarrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n\
    ld.param.u64 %d0, [out]; mul.wide.u32 %d1, %r5, 96; add.u64 %d0, %d0, %d1;\n\
    mov.u32 %r6, %cluster_ctaid.x; st.global.u32 [%d0], %r6;\n\
    mov.u32 %r6, %cluster_ctaid.y; st.global.u32 [%d0+4], %r6;\n\
    mov.u32 %r6, %cluster_ctaid.z; st.global.u32 [%d0+8], %r6;\n\
    mov.u32 %r6, %cluster_nctaid.x; st.global.u32 [%d0+12], %r6;\n\
    mov.u32 %r6, %cluster_nctaid.y; st.global.u32 [%d0+16], %r6;\n\
    mov.u32 %r6, %cluster_nctaid.z; st.global.u32 [%d0+20], %r6;\n\
    mov.u32 %r6, %clusterid.x; st.global.u32 [%d0+24], %r6;\n\
    mov.u32 %r6, %clusterid.y; st.global.u32 [%d0+28], %r6;\n\
    mov.u32 %r6, %clusterid.z; st.global.u32 [%d0+32], %r6;\n\
    mov.u32 %r6, %nclusterid.x; st.global.u32 [%d0+36], %r6;\n\
    mov.u32 %r6, %nclusterid.y; st.global.u32 [%d0+40], %r6;\n\
    mov.u32 %r6, %nclusterid.z; st.global.u32 [%d0+44], %r6;\n\
    mov.u32 %r6, %cluster_ctarank; st.global.u32 [%d0+48], %r6;\n\
    mov.u32 %r7, %cluster_nctarank; st.global.u32 [%d0+52], %r7;\n\
    mov.u32 %r8, 0; mov.u32 %r9, s; add.u64 %d0, %d0, 56;\nPEERS:\n\
    mapa.shared::cluster.u32 %r10, %r9, %r8; ld.shared::cluster.u32 %r11, [%r10];\n\
    st.global.u32 [%d0], %r11; add.u64 %d0, %d0, 4;\n\
    add.u32 %r8, %r8, 1; setp.lt.u32 %p0, %r8, %r7; @%p0 bra PEERS;\n\
    barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\nret;\n}\n";

fn launch(grid: [u32; 3], cluster: [u32; 3]) -> Launch {
    Launch { grid, cluster, ..Launch::default() }
}

#[test]
fn blocks_know_their_place_in_three_dimensions() {
    for (grid, cluster) in [
        ([4, 6, 2], [2, 2, 2]),
        ([4, 6, 2], [2, 3, 1]),
        ([2, 4, 4], [1, 2, 4]),
        ([3, 2, 8], [1, 1, 8]),
        ([4, 4, 3], [1, 4, 1]),
        ([2, 1, 3], [1, 1, 1]),
    ] {
        let blocks = grid.iter().product::<u32>() as usize;
        let zeros = vec![0u8; 96 * blocks];
        let (out, _) = run_all(PTX, "k", &launch(grid, cluster), &[Arg::In(&zeros)]);
        let out = i32s(&out[0]);
        for (b, got) in out.chunks(24).enumerate() {
            let at = [b as u32 % grid[0], b as u32 / grid[0] % grid[1], b as u32 / grid[0] / grid[1]];
            let of = |f: &dyn Fn(usize) -> u32| [f(0), f(1), f(2)];
            let inside = of(&|i| at[i] % cluster[i]);
            let size = cluster.iter().product::<u32>();
            let rank = inside[0] + cluster[0] * (inside[1] + cluster[1] * inside[2]);
            let (id, ids) = (of(&|i| at[i] / cluster[i]), of(&|i| grid[i] / cluster[i]));
            let mut want: Vec<u32> = [inside, cluster, id, ids].concat();
            want.extend([rank, size]);
            for (z, y, x) in (0..cluster[2])
                .flat_map(|z| (0..cluster[1]).flat_map(move |y| (0..cluster[0]).map(move |x| (z, y, x))))
            {
                let peer = [id[0] * cluster[0] + x, id[1] * cluster[1] + y, id[2] * cluster[2] + z];
                want.push(peer[0] + grid[0] * (peer[1] + grid[1] * peer[2]));
            }
            want.resize(24, 0);
            let want: Vec<i32> = want.into_iter().map(|n| n as i32).collect();
            assert_eq!(got, want, "block {at:?} of {grid:?} in clusters of {cluster:?}");
        }
    }
}

#[test]
fn clusters_that_the_driver_refuses() {
    let refused = |ptx: &str, grid: [u32; 3], cluster: [u32; 3], words: &str| {
        let out = Arg::Scratch(96 * grid.iter().product::<u32>() as usize);
        let what = run(ptx, "k", &launch(grid, cluster), &[out]).map(|_| ()).unwrap_err().to_string();
        assert!(what.contains(words) && !what.contains('\n'), "{grid:?} {cluster:?}: {what}");
    };
    for (grid, cluster) in [([3, 4, 4], [2, 2, 1]), ([4, 3, 4], [2, 2, 1]), ([4, 4, 3], [2, 1, 2])] {
        refused(PTX, grid, cluster, "is no whole number of clusters");
    }
    for cluster in [[9, 1, 1], [3, 3, 1], [4, 2, 2], [1, 1, 16]] {
        refused(PTX, [36, 36, 16], cluster, "1 to 8 are possible");
    }
    let with = |directive: &str| PTX.replace("out)\n{", &format!("out) {directive}\n{{"));
    let compiled = with(".explicitcluster .reqnctapercluster 2, 2, 1");
    refused(&compiled, [4, 4, 1], [4, 1, 1], "the kernel was compiled for Some([2, 2, 1])");
    refused(&compiled, [4, 3, 1], [1; 3], "is no whole number of clusters");
    refused(&with(".explicitcluster"), [4, 4, 1], [1; 3], "launches that give one (.explicitcluster)");
    refused(&with(".maxclusterrank 2"), [4, 4, 1], [2, 2, 1], "compiled for 2 at most");
    let fine = |ptx: &str, cluster: [u32; 3]| {
        run(ptx, "k", &launch([4, 4, 1], cluster), &[Arg::In(&[0; 96 * 16])]).unwrap();
    };
    fine(&compiled, [1; 3]);
    fine(&compiled, [2, 2, 1]);
    fine(&with(".explicitcluster"), [2, 2, 1]);
    fine(&with(".maxclusterrank 4"), [2, 2, 1]);
}
