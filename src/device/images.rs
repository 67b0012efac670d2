//! What a build holds of `kernels/*.cu` for each target, and which of it a GPU runs.

use crate::error::{Error, Result};

/// Machine code or PTX for one target.
pub struct Image {
    /// `sm_90`, `sm_90a` (machine code) or `compute_80` (PTX).
    pub target: &'static str,
    /// The file; PTX ends in a NUL.
    pub bytes: &'static [u8],
}

/// What nvcc made of one file of `kernels/`; without images where the build found no nvcc.
pub struct File {
    /// Name without `.cu`.
    pub stem: &'static str,
    /// Its entry points.
    pub kernels: &'static [&'static str],
    /// One for each target.
    pub images: &'static [Image],
    /// What each kernel takes on each target.
    pub resources: &'static [Resource],
}

/// An entry point of a file.
pub struct Kernel {
    /// C name.
    pub name: &'static str,
    /// Where it stands.
    pub file: &'static File,
}

impl Kernel {
    /// The op that it belongs to, as its file is named.
    pub fn op(&self) -> &'static str {
        self.file.stem.trim_end_matches("_sm90")
    }
}

/// What a kernel takes on one target, by ptxas.
pub struct Resource {
    /// C name.
    pub kernel: &'static str,
    /// `sm_90`.
    pub target: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory that it declares; what a launch adds is not in it.
    pub shared: u32,
    /// Bytes of stack and of spilled registers.
    pub spilled: u32,
    /// Most threads of a block.
    pub threads: u32,
    /// Bytes of machine code.
    pub code: u32,
}

impl Resource {
    /// Blocks of so many threads that one multiprocessor holds at a time where a launch adds `dynamic` bytes of shared
    /// memory to each, and the warps in them as a part of the most.
    ///
    /// Registers are handed out to a warp in units of 256, shared memory to a block in units of 128 bytes and with 1 KiB
    /// for the system (CUDA programming guide, technical specifications by compute capability).
    pub fn occupancy(&self, threads: u32, dynamic: u32) -> (u32, f64) {
        let (warps, blocks, shared) = match self.target.trim_start_matches("sm_").trim_end_matches('a') {
            "80" => (64, 32, 164 << 10),
            "90" => (64, 32, 228 << 10),
            _ => (48, 24, 100 << 10),
        };
        let of_block = threads.div_ceil(32).max(1);
        let by_registers = (65536 / (self.registers * 32).next_multiple_of(256).max(256)) / 4 * 4 / of_block;
        let by_shared = shared / ((self.shared + dynamic + 1024).next_multiple_of(128));
        let resident = by_registers.min(by_shared).min(warps / of_block).min(blocks);
        (resident, f64::from(resident * of_block) / f64::from(warps))
    }
}

impl Kernel {
    /// The image that `pick` takes for the GPU `name`, or an error that lists what there is.
    pub fn image(&self, name: &str, (major, minor): (u32, u32), pick: Pick) -> Result<&'static Image> {
        let (stem, images) = (self.file.stem, self.file.images);
        pick(images, (major, minor)).ok_or_else(|| {
            let built: Vec<_> = images.iter().map(|i| i.target).collect();
            Error::device(match built.is_empty() {
                true => format!("{}: this build holds no CUDA kernels, nvcc was not found", self.name),
                false => format!(
                    "{}: {name} is of compute capability {major}.{minor}, kernels/{stem}.cu was built for {}",
                    self.name,
                    built.join(", ")
                ),
            })
        })
    }
}

/// Which kernels run where there are several for one thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelSet {
    /// The portable ones, unless a caller has found the others to be right where they are to run: then those for the sizes
    /// that they are predicted to be the faster for.
    #[default]
    Auto,
    /// Those for every GPU from compute capability 8.0 on.
    Portable,
    /// Those for compute capability 9.0 where there are any, for sizes that they take; else the portable ones.
    Hopper,
}

impl KernelSet {
    /// By its name: auto, portable or hopper.
    pub fn by_name(name: &str) -> Result<KernelSet> {
        match name {
            "auto" => Ok(KernelSet::Auto),
            "portable" => Ok(KernelSet::Portable),
            "hopper" => Ok(KernelSet::Hopper),
            _ => Err(Error::usage(format!("{name:?}: expected auto, portable or hopper"))),
        }
    }
}

/// A choice among a file's images by compute capability.
pub type Pick = fn(&'static [Image], (u32, u32)) -> Option<&'static Image>;

/// The image that a GPU of this compute capability runs: its own machine code, else the nearest older of its
/// generation, else PTX for the driver to compile.
pub fn choose(images: &[Image], (major, minor): (u32, u32)) -> Option<&Image> {
    let machine = images.iter().filter_map(|i| parse(i, "sm_"));
    let runs =
        machine.filter(|(_, (a, b), only)| *a == major && if *only { *b == minor } else { *b <= minor });
    let best = runs.max_by_key(|(_, at, only)| (*at, *only));
    best.map(|(image, ..)| image).or_else(|| choose_ptx(images, (major, minor)))
}

/// The newest PTX that a GPU of this compute capability has all instructions for.
pub fn choose_ptx(images: &[Image], (major, minor): (u32, u32)) -> Option<&Image> {
    let ptx = images.iter().filter_map(|i| parse(i, "compute_"));
    let compiles =
        ptx.filter(|(_, at, only)| if *only { *at == (major, minor) } else { *at <= (major, minor) });
    compiles.max_by_key(|(_, at, only)| (*at, *only)).map(|(image, ..)| image)
}

/// Compute capability of an image, and whether it is for that one alone: the `a` of `sm_90a` stands for a generation's
/// special instructions.
fn parse<'a>(image: &'a Image, prefix: &str) -> Option<(&'a Image, (u32, u32), bool)> {
    let digits = image.target.strip_prefix(prefix)?;
    let number: u32 = digits.trim_end_matches('a').parse().ok()?;
    Some((image, (number / 10, number % 10), digits.ends_with('a')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Image] = &[
        Image { target: "sm_80", bytes: b"" },
        Image { target: "sm_90", bytes: b"" },
        Image { target: "sm_120", bytes: b"" },
        Image { target: "compute_80", bytes: b"" },
    ];

    #[test]
    fn the_image_is_exact_else_nearest_else_ptx() {
        let target = |images, at| choose(images, at).map(|i| i.target);
        for (at, wanted) in [
            ((8, 0), Some("sm_80")),
            ((8, 6), Some("sm_80")),
            ((8, 9), Some("sm_80")),
            ((9, 0), Some("sm_90")),
            ((10, 0), Some("compute_80")),
            ((12, 0), Some("sm_120")),
            ((12, 1), Some("sm_120")),
            ((7, 5), None),
        ] {
            assert_eq!(target(ALL, at), wanted, "{at:?}");
        }
        let hopper = &[Image { target: "sm_90a", bytes: b"" }, Image { target: "compute_90a", bytes: b"" }];
        assert_eq!(target(hopper, (9, 0)), Some("sm_90a"));
        assert_eq!(target(hopper, (10, 0)), None, "code for one generation's instructions runs on no other");
        assert_eq!(target(hopper, (8, 0)), None);
        assert_eq!(target(&[], (9, 0)), None);
        let ptx = |images, at| choose_ptx(images, at).map(|i| i.target);
        assert_eq!(ptx(ALL, (9, 0)), Some("compute_80"));
        assert_eq!(ptx(hopper, (9, 0)), Some("compute_90a"));
        assert_eq!(ptx(hopper, (8, 0)), None);
    }

    #[test]
    fn occupancy_is_that_of_the_guide() {
        let of = |target, registers, dynamic, threads| {
            Resource { kernel: "", target, registers, shared: 0, spilled: 0, threads, code: 0 }
                .occupancy(threads, dynamic)
        };
        assert_eq!(of("sm_90", 32, 0, 256), (8, 1.0));
        assert_eq!(of("sm_90", 33, 0, 256), (6, 0.75), "40 registers are handed out: 48 warps fit");
        assert_eq!(of("sm_90a", 168, 0, 384), (1, 12.0 / 64.0));
        assert_eq!(of("sm_80", 32, 80 << 10, 128), (2, 8.0 / 64.0));
        assert_eq!(of("sm_120", 32, 0, 256), (6, 1.0));
    }
}
