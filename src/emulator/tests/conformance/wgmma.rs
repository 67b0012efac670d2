//! `wgmma` against the PTX ISA's layouts, written down here a second time: descriptors, swizzles, majors, fragments.

use super::*;
use half::{bf16, f16};

/// How an operand lies in shared memory. `width` is the swizzle's, 16 for none.
#[derive(Clone, Copy, Debug)]
struct Layout {
    width: usize,
    across: bool,
    leading: usize,
    stride: usize,
    /// First byte of the pattern, and bytes from there to the first element.
    at: usize,
    skip: usize,
}

impl Layout {
    /// Without gaps, or with some. A swizzled K-major row may hold more than one k-step: `slice` picks it.
    fn new(width: usize, across: bool, rows: usize, at: usize, slice: usize, gap: bool) -> Layout {
        let gap = usize::from(gap);
        let atom = 8 * width;
        let (leading, stride) = match (across, width) {
            // Eight rows of sixteen bytes; k, or m, goes on behind them all.
            (false, 16) => (rows * 16 + 128 * gap, 128),
            (true, 16) => (128 + 128 * gap, 2 * (128 + 128 * gap)),
            (false, _) => (16, atom * (1 + gap)),
            (true, _) => (2 * atom * (1 + gap), atom),
        };
        Layout {
            width,
            across,
            leading,
            stride,
            at,
            skip: if width > 32 && !across { 32 * slice } else { 0 },
        }
    }

    /// The ISA's canonical layouts: T elements of 16 bytes; shape:stride in each case as its figures have them.
    fn byte(&self, mn: usize, k: usize, size: usize) -> usize {
        let t = 16 / size;
        let wide = self.width / 16;
        let linear = match (self.across, self.width) {
            // ((8, m), (T, 2)) : ((T, SBO), (1, LBO))
            (false, 16) => mn % 8 * t * size + mn / 8 * self.stride + k % t * size + k / t * self.leading,
            // ((8, m), (T, 2)) : ((wT, SBO), (1, T))
            (false, _) => mn % 8 * wide * t * size + mn / 8 * self.stride + k % t * size + k / t * t * size,
            // ((T, 1, m), (8, k)) : ((1, T, SBO), (T, LBO))
            (true, 16) => mn % t * size + mn / t * self.stride + k % 8 * t * size + k / 8 * self.leading,
            // ((T, w, m), (8, k)) : ((1, T, LBO), (wT, SBO))
            (true, _) => {
                let panel = mn / t / wide * self.leading;
                mn % t * size
                    + mn / t % wide * t * size
                    + panel
                    + k % 8 * wide * t * size
                    + k / 8 * self.stride
            }
        };
        let address = self.at + self.skip + linear;
        // Swizzle<B, 4, 3>: B bits three above the sixteen-byte bits are xored into those.
        let bits = wide.trailing_zeros();
        address ^ (address >> 3 & ((1 << bits) - 1) << 4)
    }

    fn descriptor(&self) -> u64 {
        let mode = match self.width {
            128 => 1,
            64 => 2,
            32 => 3,
            _ => 0u64,
        };
        let field = |bytes: usize| (bytes as u64 & 0x3ffff) >> 4;
        field(self.at + self.skip) | field(self.leading) << 16 | field(self.stride) << 32 | mode << 62
    }
}

/// A product: what the elements are, and where they lie.
#[derive(Clone, Copy, Debug)]
struct Case {
    element: &'static str,
    sum: &'static str,
    n: usize,
    /// `None`: from registers.
    a: Option<Layout>,
    b: Layout,
    scale: bool,
    negate: [bool; 2],
}

impl Case {
    fn size(&self) -> usize {
        if self.element == "tf32" { 4 } else { 2 }
    }

    fn k(&self) -> usize {
        32 / self.size()
    }

    fn bits(&self, x: f32) -> Vec<u8> {
        match self.element {
            "bf16" => bf16::from_f32(x).to_le_bytes().to_vec(),
            "f16" => f16::from_f32(x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        }
    }

    fn registers(&self) -> usize {
        self.n / if self.sum == "f16" { 4 } else { 2 }
    }

    /// One warpgroup: the image goes to shared memory, the product runs, D goes out, thread by thread.
    fn ptx(&self, fence: &str) -> String {
        let list = |name: &str, n: usize| (0..n).map(|i| format!("{name}{i}")).collect::<Vec<_>>().join(", ");
        let each = |text: &str, n: usize| {
            (0..n)
                .map(|i| text.replace("#", &i.to_string()).replace("@", &(4 * i).to_string()))
                .collect::<String>()
        };
        let (r, tf32) = (self.registers(), self.element == "tf32");
        let a = if self.a.is_some() { "%d4".to_string() } else { format!("{{{}}}", list("%a", 4)) };
        let sign = |n: bool| if n { "-1" } else { "1" };
        let across = |l: &Layout| u8::from(l.across);
        let majors = match &self.a {
            _ if tf32 => String::new(),
            Some(a) => format!(", {}, {}", across(a), across(&self.b)),
            None => format!(", {}", across(&self.b)),
        };
        format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 smem[];\n\
             .visible .entry k(.param .u64 out, .param .u64 image, .param .u64 left, .param .u64 da, .param .u64 db, .param .u32 words)\n{{\n\
             .reg .b32 %r<10>, %x<{r}>, %a<4>; .reg .b64 %d<10>; .reg .pred %p<3>;\n\
             ld.param.u64 %d1, [out];\nld.param.u64 %d2, [image];\nld.param.u64 %d3, [left];\nld.param.u64 %d4, [da];\n\
             ld.param.u64 %d5, [db];\nld.param.u32 %r1, [words];\nmov.u32 %r2, %tid.x;\nmov.u32 %r3, smem;\nmov.u32 %r4, %r2;\n\
             FILL: setp.ge.u32 %p1, %r4, %r1;\n@%p1 bra FULL;\nmul.wide.u32 %d6, %r4, 4;\nadd.u64 %d6, %d2, %d6;\n\
             ld.global.b32 %r5, [%d6];\nshl.b32 %r6, %r4, 2;\nadd.u32 %r6, %r3, %r6;\nst.shared.b32 [%r6], %r5;\n\
             add.u32 %r4, %r4, 128;\nbra FILL;\nFULL:\n\
             mul.wide.u32 %d7, %r2, {};\nadd.u64 %d7, %d1, %d7;\n{}\
             mul.wide.u32 %d8, %r2, 16;\nadd.u64 %d8, %d3, %d8;\n{}\
             {fence}\nbar.sync 0;\nsetp.eq.u32 %p2, 0, {};\n\
             wgmma.fence.sync.aligned;\n\
             wgmma.mma_async.sync.aligned.m64n{}k{}.{}.{}.{} {{{}}}, {a}, %d5, %p2, {}, {}{majors};\n\
             wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n{}ret;\n}}\n",
            4 * r,
            each("ld.global.b32 %x#, [%d7+@];\n", r),
            each("ld.global.b32 %a#, [%d8+@];\n", 4),
            u8::from(!self.scale),
            self.n,
            self.k(),
            self.sum,
            self.element,
            self.element,
            list("%x", r),
            sign(self.negate[0]),
            sign(self.negate[1]),
            each("st.global.b32 [%d7+@], %x#;\n", r),
        )
    }

    /// Small whole numbers, so that every order of the sums gives the same.
    fn check(&self) {
        let (size, k, n) = (self.size(), self.k(), self.n);
        let whole = |i: usize, j: usize, salt: usize| ((i * 31 + j * 17 + salt * 7 + i * j) % 9) as f32 - 4.0;
        let (a, b, c) = (|m, k| whole(m, k, 1), |n, k| whole(n, k, 2), |m, n| whole(m, n, 3));
        // What lies between is NaN.
        let mut image = vec![0xffu8; 200 << 10];
        let put = |image: &mut Vec<u8>, layout: &Layout, rows: usize, of: &dyn Fn(usize, usize) -> f32| {
            for (mn, k) in (0..rows).flat_map(|mn| (0..k).map(move |k| (mn, k))) {
                let at = layout.byte(mn, k, size);
                image[at..at + size].copy_from_slice(&self.bits(of(mn, k)));
            }
        };
        if let Some(layout) = &self.a {
            put(&mut image, layout, 64, &a);
        }
        put(&mut image, &self.b, n, &b);
        let end = image.iter().rposition(|b| *b != 0xff).map_or(0, |i| i + 1);
        image.truncate(end.next_multiple_of(1024));
        // The fragments of the ISA: thread t holds rows 16 (t / 32) + t % 32 / 4 and eight below.
        let pack = 4 / size;
        let mut left = vec![0u8; 128 * 16];
        let mut sums = vec![0u8; 128 * 4 * self.registers()];
        let mut want = sums.clone();
        for t in 0..128 {
            let (row, inner) = (t / 32 * 16 + t % 32 / 4, t % 4);
            for (r, i) in (0..4).flat_map(|r| (0..pack).map(move |i| (r, i))) {
                let column = inner * pack + i + if r >= 2 { k / 2 } else { 0 };
                let at = t * 16 + r * 4 + i * size;
                left[at..at + size].copy_from_slice(&self.bits(a(row + r % 2 * 8, column)));
            }
            for e in 0..n / 2 {
                // Element e of a thread: pairs of columns, then eight rows below, then eight columns on.
                let (m, column) = (row + e / 2 % 2 * 8, e / 4 * 8 + inner * 2 + e % 2);
                let sign = if self.negate[0] != self.negate[1] { -1.0 } else { 1.0 };
                let product: f32 = (0..k).map(|k| a(m, k) * b(column, k)).sum();
                let d = sign * product + if self.scale { c(m, column) } else { 0.0 };
                let width = if self.sum == "f16" { 2 } else { 4 };
                let at = t * 4 * self.registers() + e * width;
                let bytes = |x: f32| match width {
                    2 => f16::from_f32(x).to_le_bytes().to_vec(),
                    _ => x.to_le_bytes().to_vec(),
                };
                sums[at..at + width].copy_from_slice(&bytes(c(m, column)));
                want[at..at + width].copy_from_slice(&bytes(d));
            }
        }
        let (da, db) = (self.a.map_or(0, |a| a.descriptor()), self.b.descriptor());
        for seed in 0..2 {
            let (out, counters) = launch(&self.ptx(FENCE), &sums, &image, &left, [da, db], seed)
                .unwrap_or_else(|e| panic!("{self:?}: {e}"));
            let got = f32s(&out);
            assert!(out == want, "{self:?}: {:?} {:?}", &got[..8], &f32s(&want)[..8]);
            assert_eq!(counters.total.flops, (2 * 64 * n * k) as u64);
        }
        let (args, shared) = (arguments(&sums, &image, &left, [da, db]), image.len());
        real::also(&self.ptx(FENCE), "k", &Launch { shared, ..line(1, 128) }, &args, |there| {
            assert!(there[0] == want, "{self:?}");
        });
    }
}

const FENCE: &str = "fence.proxy.async;";

fn launch(
    ptx: &str,
    sums: &[u8],
    image: &[u8],
    left: &[u8],
    descriptors: [u64; 2],
    seed: u64,
) -> Result<(Vec<u8>, Counters)> {
    let (args, shared) = (arguments(sums, image, left, descriptors), image.len());
    let (mut out, counters) = run(ptx, "k", &Launch { shared, seed, ..line(1, 128) }, &args)?;
    Ok((out.remove(0), counters))
}

fn arguments<'a>(sums: &'a [u8], image: &'a [u8], left: &'a [u8], [da, db]: [u64; 2]) -> [Arg<'a>; 6] {
    let words = Arg::Int(image.len() as i32 / 4);
    [Arg::In(sums), Arg::In(image), Arg::In(left), Arg::Long(da), Arg::Long(db), words]
}

const WIDTHS: [usize; 4] = [16, 32, 64, 128];

#[test]
fn every_layout_of_b() {
    for (i, n) in [8, 16, 64, 96, 128, 256].into_iter().enumerate() {
        for width in WIDTHS {
            for across in [false, true] {
                let a = Layout::new(WIDTHS[i % 4], i % 2 == 1, 64, 0, i % (width / 32).max(1), i % 3 == 1);
                let b = Layout::new(width, across, n, 32768, i % (width / 32).max(1), i % 2 == 0);
                let a = Layout { skip: if a.skip < a.width { a.skip } else { 0 }, ..a };
                let case =
                    Case { element: "bf16", sum: "f32", n, a: Some(a), b, scale: true, negate: [false; 2] };
                case.check();
            }
        }
    }
}

#[test]
fn every_layout_of_a() {
    for width in WIDTHS {
        for (across, gap) in [(false, false), (true, false), (false, true), (true, true)] {
            let a = Layout::new(width, across, 64, 2048, width / 32 % 3, gap);
            let a = Layout { skip: if a.skip + 32 <= width { a.skip } else { 0 }, ..a };
            let b = Layout::new(64, false, 24, 32768, 1, false);
            for scale in [false, true] {
                let case =
                    Case { element: "f16", sum: "f32", n: 24, a: Some(a), b, scale, negate: [scale, gap] };
                case.check();
            }
        }
    }
}

#[test]
fn a_in_registers_and_the_other_types() {
    for (element, sum) in [("bf16", "f32"), ("f16", "f32"), ("f16", "f16"), ("tf32", "f32")] {
        for width in WIDTHS {
            for across in [false, true].into_iter().filter(|x| !x || element != "tf32") {
                let b = Layout::new(width, across, 48, 4096, 0, true);
                let a = Layout::new(width, false, 64, 32768, 0, false);
                for a in [None, Some(a)] {
                    let negate = [a.is_none(), across];
                    Case { element, sum, n: 48, a, b, scale: true, negate }.check();
                }
            }
        }
    }
}

#[test]
fn bad_descriptors() {
    let a = Layout::new(128, false, 64, 0, 0, false);
    let b = Layout::new(128, false, 16, 65536, 0, false);
    let case = Case { element: "bf16", sum: "f32", n: 16, a: Some(a), b, scale: true, negate: [false; 2] };
    let fails = |da: u64, db: u64, words: &[&str]| {
        let (ptx, sums, image) = (case.ptx(FENCE), vec![0; 128 * 32], vec![0; 100 << 10]);
        let what = launch(&ptx, &sums, &image, &[0; 2048], [da, db], 0).map(|_| ()).unwrap_err().to_string();
        let line = 1 + ptx.lines().position(|l| l.contains("mma_async")).unwrap();
        assert!(what.contains(&format!("test.ptx:{line} ")), "{what}");
        assert!(words.iter().all(|w| what.contains(w)), "{what}");
    };
    let (da, db) = (a.descriptor(), b.descriptor());
    fails(da | 1 << 14, db, &["A: descriptor", "bits 0x4000 must be zero"]);
    fails(da, db | 1 << 55, &["B: descriptor", "must be zero"]);
    fails(da + 8, db, &["misaligned", "row 1 of a pattern of 128-byte swizzle", "every 1024 bytes"]);
    fails(da, db | 2 << 49, &["misaligned", "base offset says 2"]);
    fails(da, db + (40 << 10 >> 4), &["out of bounds", "through B's descriptor"]);
    fails(da, db | 4096 << 32, &["out of bounds", "through B's descriptor"]);
    // A pattern that starts elsewhere says so, and is then right.
    fails(da, db + 8, &["misaligned"]);
    let moved = |at: usize| Layout { at: b.at + at, ..b };
    assert!(
        launch(
            &case.ptx(FENCE),
            &[0; 4096],
            &[0; 100 << 10],
            &[0; 2048],
            [da, moved(128).descriptor() | 1 << 49],
            0
        )
        .is_ok()
    );
}

/// Products of one shape may follow each other into an accumulator; others must wait for it.
#[test]
fn an_accumulator_under_way_has_one_shape() {
    let a = Layout::new(128, false, 64, 0, 0, false);
    let b = Layout::new(128, false, 16, 65536, 0, false);
    let case = Case { element: "bf16", sum: "f32", n: 16, a: Some(a), b, scale: false, negate: [false; 2] };
    let text = case.ptx(FENCE);
    let at = text.find("wgmma.mma_async").unwrap();
    let before = |code: &str| format!("{}{code}\n{}", &text[..at], &text[at..]);
    let product = |n: usize, a: &str| {
        let d = (0..n / 2).map(|i| format!("%x{i}")).collect::<Vec<_>>().join(", ");
        let majors = if a == "%d4" { "0, 0" } else { "0" };
        format!("wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{d}}}, {a}, %d5, 0, 1, 1, {majors};")
    };
    let waits = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;";
    let run = |ptx: &str| {
        let descriptors = [a.descriptor(), b.descriptor()];
        launch(ptx, &[0; 4096], &[0; 100 << 10], &[0; 2048], descriptors, 0)
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    assert_eq!(run(&before(&product(16, "%d4"))), Ok(()));
    assert_eq!(run(&before(&(product(8, "%d4") + waits))), Ok(()));
    let fails = |code: &str, words: &str| {
        let what = run(&before(code)).unwrap_err();
        assert!(what.contains(words), "{what}");
    };
    fails(&product(8, "%d4"), "a wgmma of another shape");
    // A product's sums are not the next one's operand before it is done, nor the other way round.
    fails(&product(16, "{%x0, %x1, %x2, %x3}"), "accumulator");
    let chained = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%a0, %a1, %a2, %a3}, {%x0, %x1, %x2, %x3}, %d5, 0, 1, 1, 0;";
    fails(chained, "an accumulator belongs to another wgmma");
}
