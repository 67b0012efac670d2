//! What ptxas made of the products for Hopper, where nvdisasm is there to say: `pip install nvidia-cuda-nvdisasm`, found in
//! $NVDISASM, in PATH, or beside nvcc.

use llm2vec::launches::FILES;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Kernels whose main loop is wgmma.
const PRODUCTS: [&str; 19] = [
    "contrastive_bwd_sm90_3",
    "contrastive_bwd_sm90_1",
    "contrastive_dc_sm90_3",
    "contrastive_dc_sm90_1",
    "contrastive_dq_sm90_3",
    "contrastive_dq_sm90_1",
    "contrastive_fwd_sm90_3",
    "contrastive_fwd_sm90_1",
    "contrastive_limit_sm90_3",
    "contrastive_limit_sm90_1",
    "lora_linear_swiglu_sm90",
    "lora_linear_rope_sm90_d128",
    "lora_linear_rope_sm90_d64",
    "lora_linear_fwd_sm90_256",
    "lora_linear_fwd_sm90_128",
    "lora_linear_dx_sm90_256",
    "lora_linear_dx_sm90_128",
    "masked_xent_logits_sm90",
    "masked_xent_dx_sm90",
];

fn nvdisasm() -> Option<PathBuf> {
    let named = std::env::var_os("NVDISASM").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let near = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nvcc/nvidia/cu13/bin");
    let places = std::env::split_paths(&path).chain([near]).map(|dir| dir.join("nvdisasm"));
    named.into_iter().chain(places).find(|program| program.is_file())
}

/// The instructions of each kernel of a cubin, without operands, in their order.
fn instructions(nvdisasm: &Path, stem: &str, cubin: &[u8]) -> Vec<(String, Vec<String>)> {
    let file = std::env::temp_dir().join(format!("llm2vec-{}-{stem}.cubin", std::process::id()));
    std::fs::write(&file, cubin).unwrap();
    let output = Command::new(nvdisasm).arg("-c").arg(&file).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(output.status.success(), "{stem}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let kernel = |part: &str| {
        let name = part.split(':').next().unwrap_or_default().to_string();
        // `/*0a30*/  @!P0 HGMMA.64x256x16.F32.BF16 R24, ...`
        let one = |line: &str| {
            let words = line.split_once("*/")?.1.split_whitespace();
            let word = words.into_iter().find(|word| !word.starts_with('@'))?;
            word.starts_with(|c: char| c.is_ascii_uppercase()).then(|| word.trim_end_matches(';').to_string())
        };
        (name, part.lines().filter_map(one).collect())
    };
    text.split("\n.text.").skip(1).map(kernel).collect()
}

/// The main loop is four wgmma for the four k-steps of a stage (exact contrastive: twelve, six for each of two), one wait for those of
/// the stage before, one arrival; no fence that flushes, no access to local memory, anywhere between.
#[test]
fn the_main_loops_of_hopper_hold_wgmma_and_nothing_that_waits_for_memory() {
    let Some(nvdisasm) = nvdisasm() else { return println!("skipped: no nvdisasm") };
    let mut seen = Vec::new();
    for file in FILES.iter().filter(|file| file.stem.ends_with("_sm90")) {
        let Some(image) = file.images.iter().find(|image| image.target == "sm_90a") else { continue };
        for (kernel, code) in instructions(&nvdisasm, file.stem, image.bytes) {
            if kernel.starts_with("attention_bwd") {
                exponentials_run_under_products(&kernel, &code);
                continue;
            }
            if kernel.starts_with("attention") {
                softmax_runs_under_products(&kernel, &code);
                continue;
            }
            let is = |at: usize, name: &str| code[at].split('.').next() == Some(name);
            let wgmma: Vec<usize> = (0..code.len()).filter(|&at| is(at, "HGMMA")).collect();
            let Some(&[first, .., last]) = wgmma.last_chunk::<4>() else { continue };
            assert!(!(0..code.len()).any(|at| is(at, "LDL") || is(at, "STL")), "{kernel} spills");
            let wait = (last..code.len()).find(|&at| code[at].starts_with("WARPGROUP.DEPBAR"));
            let wait = wait.unwrap_or_else(|| panic!("{kernel} waits for no wgmma"));
            assert!(wait - first < 80, "{kernel}: {} instructions in a stage", wait - first);
            for flushes in ["MEMBAR", "CCTL", "ERRBAR", "BAR"] {
                assert!(!(first..wait).any(|at| is(at, flushes)), "{kernel}: {flushes} in the main loop");
            }
            let between = wgmma.windows(2).filter(|pair| pair[0] >= first).map(|pair| pair[1] - pair[0]);
            // A wgmma of 128 columns takes 64 cycles: so many instructions are issued under it.
            assert!(between.max() < Some(64), "{kernel}: wgmma are apart");
            seen.push(kernel);
        }
    }
    if !seen.is_empty() {
        seen.sort();
        let mut wanted = PRODUCTS.to_vec();
        wanted.sort_unstable();
        assert_eq!(seen, wanted);
    }
}

/// Attention's main loop: the products of a tile's scores (D / 16 wgmma of 128 columns) and of the probabilities before (8), then
/// a wait for the former, and all exponentials before the wait for the latter.
fn softmax_runs_under_products(kernel: &str, code: &[String]) {
    let is = |at: &usize, name: &str| code[*at].split('.').next() == Some(name);
    let all = 0..code.len();
    assert!(!all.clone().any(|at| is(&at, "LDL") || is(&at, "STL")), "{kernel} spills");
    let waits: Vec<usize> = all.filter(|at| code[*at].starts_with("WARPGROUP.DEPBAR")).collect();
    let count = |name: &str, from: usize, to: usize| (from..to).filter(|at| is(at, name)).count();
    let scores = if kernel.ends_with("128") { 8 } else { 4 };
    let main = waits.windows(3).find(|w| count("HGMMA", w[0], w[1]) == scores + 8);
    let &[before, one, other] = main.unwrap_or_else(|| panic!("{kernel} has no main loop")) else {
        unreachable!()
    };
    assert_eq!(count("HGMMA", one, other), 0, "{kernel}");
    let under = count("MUFU", one, other);
    assert!(under >= 64, "{kernel}: {under} exponentials under the products");
    let first = (before..one).find(|at| is(at, "HGMMA")).unwrap();
    for flushes in ["MEMBAR", "CCTL", "ERRBAR"] {
        assert_eq!(count(flushes, first, other), 0, "{kernel}: {flushes} in the main loop");
    }
}

/// The backward's loop: the products of scores and of dout vᵀ (D / 16 wgmma of 64 columns each), a wait for the former, and all
/// exponentials before the wait for the latter.
fn exponentials_run_under_products(kernel: &str, code: &[String]) {
    let is = |at: &usize, name: &str| code[*at].split('.').next() == Some(name);
    let all = 0..code.len();
    assert!(!all.clone().any(|at| is(&at, "LDL") || is(&at, "STL")), "{kernel} spills");
    let count = |name: &str, from: usize, to: usize| (from..to).filter(|at| is(at, name)).count();
    let waits = all.filter(|at| code[*at].starts_with("WARPGROUP.DEPBAR"));
    let waits: Vec<usize> = std::iter::once(0).chain(waits).collect();
    let products = if kernel.ends_with("128") { 16 } else { 8 };
    let main =
        waits.windows(3).find(|w| count("HGMMA", w[0], w[1]) == products && count("MUFU", w[1], w[2]) >= 32);
    let &[before, one, other] = main.unwrap_or_else(|| panic!("{kernel} has no main loop")) else {
        unreachable!()
    };
    assert_eq!(count("HGMMA", one, other), 0, "{kernel}");
    let first = (before..one).find(|at| is(at, "HGMMA")).unwrap();
    for flushes in ["MEMBAR", "CCTL", "ERRBAR"] {
        assert_eq!(count(flushes, first, other), 0, "{kernel}: {flushes} in the main loop");
    }
}
