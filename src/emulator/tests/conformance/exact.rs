//! Which kernels the ISA gives every bit of: what is compared bit for bit with a GPU.

use super::*;
use crate::ptx::is_exact;

/// One on a kernel's lines; another kernel stands behind it.
fn exact(lines: &str) -> bool {
    let ptx = format!(
        ".visible .entry k(\n.param .u64 k_param_0\n)\n{{\n{lines}\nret;\n}}\n.visible .entry other()\n{{\nex2.approx.f32 %f0, %f1;\n}}\n"
    );
    is_exact(&ptx, "k")
}

/// ptxas may round a product and a sum at once where neither says how it rounds.
#[test]
fn products_that_reach_sums() {
    for open in [
        "mul.f32 %f1, %f2, %f3;\nadd.f32 %f4, %f5, %f1;",
        "mul.ftz.f32 %f1, %f2, %f3;\nsub.ftz.f32 %f4, %f1, %f5;",
        "mul.f64 %fd1, %fd2, %fd3;\nneg.f64 %fd4, %fd1;\n@%p1 add.f64 %fd4, %fd5, %fd4;",
        // A loop carries the product to the sum above it.
        "L:\nadd.f32 %f4, %f4, %f1;\nmul.f32 %f6, %f2, %f3;\nmov.f32 %f1, %f6;\n@%p1 bra L;",
        "{ mul.f16 %rs1, %rs2, %rs3;\n}\n{\n add.f16 %rs4, %rs1, %rs5;\n}",
        "mul.f32 %f1, %f2, %f3;\nmov.b64 %rd1, {%f1, %f5};\nmov.b64 {%f7, %f8}, %rd1;\nadd.f32 %f4, %f8, %f5;",
    ] {
        assert!(!exact(open), "{open}");
    }
    for exact_lines in [
        "mul.rn.f32 %f1, %f2, %f3;\nadd.f32 %f4, %f5, %f1;",
        "mul.f32 %f1, %f2, %f3;\nadd.rn.f32 %f4, %f5, %f1;",
        "add.f32 %f1, %f2, %f3;\nmul.f32 %f4, %f5, %f1;",
        "fma.rn.f32 %f1, %f2, %f3, %f4;\nadd.f32 %f4, %f5, %f1;",
        "mul.lo.s32 %r1, %r2, %r3;\nadd.s32 %r4, %r1, %r5;",
        "mul.f32 %f1, %f2, %f3;\nst.global.f32 [%rd1], %f1;\nld.global.f32 %f6, [%rd1];\nadd.f32 %f4, %f5, %f6;",
        "mul.f32 %f1, %f2, %f3;\nmax.f32 %f6, %f1, %f2;\nadd.f32 %f4, %f5, %f6;",
    ] {
        assert!(exact(exact_lines), "{exact_lines}");
    }
}

/// Functions with errors, products of matrices, calls, and sums by atomics, which have any order.
#[test]
fn what_has_errors_or_no_order() {
    for open in [
        "ex2.approx.ftz.f32 %f1, %f2;",
        "rsqrt.approx.f32 %f1, %f2;",
        "div.full.f32 %f1, %f2, %f3;",
        // Behind the end of what stands in braces of its own.
        "{\nmov.u32 %r1, %r2;\n}\nlg2.approx.f32 %f1, %f2;",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f2};",
        "call.uni f, (param0);",
        "red.global.add.f32 [%rd1], %f1;",
        "atom.shared.add.noftz.bf16x2 %r1, [%r2], %r3;",
    ] {
        assert!(!exact(open), "{open}");
    }
    for exact_lines in [
        "div.rn.f32 %f1, %f2, %f3;",
        "sqrt.rn.f32 %f1, %f2;",
        "red.global.add.u32 [%rd1], %r1;",
        "// ex2.approx",
    ] {
        assert!(exact(exact_lines), "{exact_lines}");
    }
    assert!(is_exact(BASICS, "vector_add") && !is_exact(GEMM, "gemm") && !is_exact(BASICS, "scalar_zoo"));
}
