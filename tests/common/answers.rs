//! What there is to run kernels on.
#![allow(dead_code)] // each test file uses its own part

use llm2vec::device::gpu::Gpu;
use llm2vec::launches as kernels;

fn required(name: &str) -> bool {
    std::env::var(name).is_ok_and(|v| !["", "0"].contains(&v.as_str()))
}

/// Whether this build holds kernels. Says so where it does not; REQUIRE_NVCC=1 makes that an error.
pub fn built() -> bool {
    let built = kernels::FILES.iter().any(|f| !f.images.is_empty());
    if !built {
        assert!(!required("REQUIRE_NVCC"), "REQUIRE_NVCC is set: this build holds no kernels");
        println!("skipped: this build holds no kernels (nvcc was not found)");
    }
    built
}

/// The first GPU. Says why none answers; REQUIRE_GPU=1 makes that an error.
pub fn cuda() -> Option<Gpu> {
    let gpu = Gpu::cuda(0);
    if let Err(why) = &gpu {
        assert!(!required("REQUIRE_GPU"), "REQUIRE_GPU is set: {why}");
        println!("skipped on a GPU: {why}");
    }
    gpu.ok()
}
