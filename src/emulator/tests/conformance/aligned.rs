//! `.aligned` instructions that a branch lets lanes come to one after the other, and the same where no branch does.

use super::*;

/// A warpgroup; `%p0` holds of odd lanes, `%p2` of the first of each warp.
fn file(body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out) .maxntid 128, 1, 1\n{{\n\
         .reg .b16 %h<2>; .reg .b32 %r<20>; .reg .b64 %d<9>; .reg .f32 %f<9>; .reg .pred %p<9>;\n\
         .shared .align 1024 .b8 s[2048]; .shared .align 8 .b64 b;\n\
         ld.param.u64 %d0, [out];\nmov.u32 %r8, %tid.x;\nmul.wide.u32 %d2, %r8, 4;\nadd.u64 %d0, %d0, %d2;\n\
         mov.u32 %r9, s;\nshl.b32 %r2, %r8, 4;\nadd.u32 %r10, %r9, %r2;\nmov.u32 %r0, 0;\nmov.u32 %r3, 0;\n\
         st.shared.v4.u32 [%r10], {{%r0, %r0, %r0, %r0}};\nfence.proxy.async;\n\
         mov.u32 %r4, %r0;\nmov.u32 %r5, %r0;\nmov.u32 %r6, %r0;\nmov.u32 %r7, %r0;\n\
         mov.f32 %f0, 0f00000000;\nmov.f32 %f1, %f0;\nmov.f32 %f2, %f0;\nmov.f32 %f3, %f0;\n\
         shr.u32 %r11, %r9, 4;\ncvt.u64.u32 %d1, %r11;\nor.b64 %d1, %d1, 68720001024;\n\
         and.b32 %r1, %r8, 1;\nsetp.ne.u32 %p0, %r1, 0;\nand.b32 %r2, %r8, 31;\nsetp.eq.u32 %p2, %r2, 0;\n\
         setp.eq.u32 %p3, %r8, 0;\nbar.sync 0;\n{body}\nst.global.u32 [%d0], %r0;\nret;\n}}\n"
    )
}

fn seeds(body: &str) -> impl Iterator<Item = Result<Vec<i32>>> {
    let ptx = file(body);
    (0..6).map(move |seed| {
        let launch = Launch { seed, budget: 1 << 16, ..line(1, 128) };
        run(&ptx, "k", &launch, &[Arg::Scratch(512)]).map(|(out, _)| i32s(&out[0]))
    })
}

const PRODUCT: &str = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, \
                       {%r4, %r5, %r6, %r7}, %d1, 1, 1, 1, 0;";

/// Each with what the report calls it, and with what it needs before it and leaves behind.
fn aligned() -> Vec<(&'static str, &'static str, &'static str, &'static str)> {
    let (fence, end) =
        ("wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;");
    vec![
        ("bar.sync 1;", "barrier.sync.aligned", "", ""),
        ("barrier.sync.aligned 1;", "barrier.sync.aligned", "", ""),
        ("barrier.cta.sync.aligned 1, 128;", "barrier.sync.aligned", "", ""),
        ("bar.arrive 1, 128;", "barrier.arrive.aligned", "", ""),
        ("bar.red.popc.u32 %r12, 1, 1;", "barrier.red.aligned", "", ""),
        ("barrier.cluster.arrive.aligned;", "barrier.cluster.arrive.aligned", "", "barrier.cluster.wait;"),
        ("barrier.cluster.wait.aligned;", "barrier.cluster.wait.aligned", "barrier.cluster.arrive;", ""),
        ("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r12}, [%r10];", "ldmatrix.sync.aligned", "", ""),
        ("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r10], {%r4};", "stmatrix.sync.aligned", "", ""),
        (
            "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r4, %r5}, {%r6}, \
             {%f0, %f1, %f2, %f3};",
            "mma.sync.aligned",
            "",
            "",
        ),
        (fence, "wgmma.fence.sync.aligned", "", ""),
        (PRODUCT, "wgmma.mma_async.sync.aligned", fence, end),
        ("wgmma.commit_group.sync.aligned;", "wgmma.commit_group.sync.aligned", "", ""),
        ("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned", "", ""),
        ("setmaxnreg.dec.sync.aligned.u32 240;", "setmaxnreg.sync.aligned", "", ""),
    ]
}

/// Even lanes come to it in a loop's first round, and odd ones in its second: the same instruction for all, as often.
fn by_turns(inst: &str, guarded: bool) -> String {
    let inst = match guarded {
        true => format!("@%p1 {inst}"),
        false => format!("@!%p1 bra PAST;\n{inst}\nPAST:"),
    };
    format!(
        "mov.u32 %r13, 0;\nLOOP:\nsetp.eq.u32 %p1, %r13, %r1;\n{inst}\nadd.u32 %r13, %r13, 1;\n\
         setp.lt.u32 %p4, %r13, 2;\n@%p4 bra LOOP;\n"
    )
}

#[test]
fn lanes_that_come_one_after_the_other() {
    for (inst, name, before, behind) in aligned() {
        for guarded in [false, true] {
            let body = format!("{before}\n{}\n{behind}", by_turns(inst, guarded));
            for what in seeds(&body) {
                let what = what.map(|_| ()).expect_err(&body).to_string();
                let words = ["barrier in k", name, "apart from the others", "they parted at"];
                assert!(words.iter().all(|w| what.contains(w)), "{body}: {what}");
            }
        }
        // The same in rounds that all lanes have alike.
        let alike = by_turns(inst, false).replace("%r13, %r1;", "%r13, 0;");
        let body = format!("{before}\n{alike}\n{behind}");
        seeds(&body).for_each(|out| drop(out.unwrap_or_else(|e| panic!("{body}: {e}"))));
    }
}

#[test]
fn barriers_that_lanes_may_come_to_apart() {
    for inst in
        ["barrier.sync 1;", "barrier.cta.sync 1, 128;", "barrier.cluster.arrive;\nbarrier.cluster.wait;"]
    {
        let body = by_turns(inst, false);
        seeds(&body).for_each(|out| drop(out.unwrap_or_else(|e| panic!("{body}: {e}"))));
    }
}

/// Behind what has parted them lanes are together, however long some of them took and whoever ran ahead.
#[test]
fn branches_that_have_joined() {
    let wait = "@%p3 mbarrier.init.shared.b64 [b], 4;\nbar.sync 0;\n\
                @!%p2 bra W;\nmbarrier.arrive.shared.b64 _, [b];\nW:\n";
    // One lane of each warp waits in a loop, that has a way out by a trap.
    let spin = "@!%p2 bra JOIN;\nSPIN:\nmbarrier.test_wait.parity.shared.b64 %p1, [b], 0;\n@%p1 bra JOIN;\n\
                add.u32 %r3, %r3, 1;\nsetp.gt.u32 %p4, %r3, 9999;\n@!%p4 bra SPIN;\ntrap;\nJOIN:\n";
    // Lanes count to their own numbers.
    let count = "mov.u32 %r3, 0;\nC:\nadd.u32 %r3, %r3, 1;\nsetp.le.u32 %p4, %r3, %r2;\n@%p4 bra C;\n";
    // A branch of two ways, one of them with a branch of its own.
    let ways = "@%p0 bra ODD;\n@%p2 bra E;\nadd.u32 %r3, %r3, 1;\nE:\nbra.uni BOTH;\nODD:\nadd.u32 %r3, %r3, 2;\nBOTH:\n";
    let table = "T: .branchtargets A, B;\nbrx.idx %r1, T;\nA:\nadd.u32 %r3, %r3, 1;\nbra.uni C;\nB:\nadd.u32 %r3, %r3, 2;\nC:\n";
    for (inst, _, before, behind) in aligned() {
        for parted in [format!("{wait}{spin}"), count.into(), ways.into(), table.into()] {
            let body = format!("{before}\n{parted}{inst}\n{behind}");
            seeds(&body).for_each(|out| drop(out.unwrap_or_else(|e| panic!("{body}: {e}"))));
        }
    }
    // A loop that is left by an exit alone, and one in which two ways never join: one traps.
    let inside = "@%p0 bra ODD;\nadd.u32 %r3, %r3, 1;\nODD:\nbar.sync 1;";
    let count = "add.u32 %r3, %r3, 0;\nadd.u32 %r0, %r0, 1;\nsetp.gt.u32 %p4, %r0, 40;";
    let exit = format!("LOOP:\n{inside}\n{count}\n@%p4 st.global.u32 [%d0], %r0;\n@%p4 exit;\nbra.uni LOOP;");
    seeds(&exit).for_each(|out| assert_eq!(out.unwrap_or_else(|e| panic!("{exit}: {e}")), [41; 128]));
    for what in seeds(&exit.replace("ODD:\nbar.sync 1;", "bar.sync 1;\nODD:")) {
        what.expect_err("odd lanes never come");
    }
    // Whoever has left stays away from nobody's.
    let mma = aligned().into_iter().find(|a| a.1 == "mma.sync.aligned").unwrap().0;
    let body =
        format!("@%p0 st.global.u32 [%d0], 7;\n@%p0 bra END;\n{mma}\nst.global.u32 [%d0], %r0;\nEND:\nexit;");
    for out in seeds(&body) {
        let wanted: Vec<i32> = (0..128).map(|i| if i % 2 == 1 { 7 } else { 0 }).collect();
        assert_eq!(out.unwrap_or_else(|e| panic!("{body}: {e}")), wanted);
    }
}
