//! A launch, checked and run to its end.

use super::plan::Plan;
use super::{Args, Launch};
use crate::error::{Error, Result};
use crate::isa::module::{Function, Module};
use crate::machine::cluster::MOST_BLOCKS;
use crate::machine::memory::Memory;
use crate::machine::predecessor::Predecessor;
use crate::report::checks::{Checks, Collected, Finding};
use crate::report::counters::Counters;
use std::sync::Arc;

/// Static and dynamic shared memory that a block may have: what an H100 gives.
const MOST_SHARED: usize = 227 << 10;

/// Checks the launch and runs it to its end; `before` is the kernel before it, if that may still run.
pub fn run(
    module: &Module,
    memory: &mut Memory,
    symbols: &[u64],
    kernel: &str,
    launch: &Launch,
    args: &Args<'_>,
    (before, checks): (Option<&Predecessor>, &Checks),
) -> (Result<Counters>, Vec<Finding>) {
    let mut found = Collected::new(checks);
    let ran = all(module, memory, symbols, (kernel, args), launch, before, &mut found);
    (ran, found.findings(kernel))
}

fn all(
    module: &Module,
    memory: &mut Memory,
    symbols: &[u64],
    (kernel, args): (&str, &Args<'_>),
    launch: &Launch,
    before: Option<&Predecessor>,
    found: &mut Collected,
) -> Result<Counters> {
    let index = module.functions.iter().position(|f| f.entry && f.name == kernel && f.end > f.start);
    let Some(index) = index else {
        let names: Vec<&str> = module.functions.iter().filter(|f| f.entry).map(|f| f.name.as_str()).collect();
        let what = format!("{}: no kernel {kernel}; there are: {}", module.name, names.join(", "));
        return Err(Error::Usage(what));
    };
    let function = &module.functions[index];
    let mut launch = *launch;
    if launch.cluster == [1; 3] {
        launch.cluster = function.cluster.unwrap_or([1; 3]);
    }
    refuse(module, function, &launch).map_err(|what| Error::Usage(format!("{kernel}: {what}")))?;
    let param = parameters(function, args).map_err(|what| Error::Usage(format!("{kernel}: {what}")))?;
    memory.regions.iter_mut().for_each(|r| {
        // What the kernel before has touched is noted there still.
        r.before = before.map(|_| Arc::new(std::mem::take(&mut r.races)));
        r.races.clear();
        r.released.clear();
    });
    let plan = Plan {
        module,
        kernel: function,
        index: index as u32,
        launch,
        param,
        symbols,
        before,
        checks: &found.checks.clone(),
    };
    match plan.run(memory, found) {
        Ok(counts) => {
            let mut counters = Counters::new(module, &counts);
            (counters.threads, counters.dynamic) = (launch.block.iter().product(), launch.shared);
            for [read, written] in memory.regions.iter().map(|r| r.races.touched()) {
                counters.read += read;
                counters.written += written;
            }
            Ok(counters)
        }
        Err(mut fault) => {
            fault.kernel = kernel.to_string();
            Err(Error::Finding { kind: fault.kind, what: fault.to_string() })
        }
    }
}

fn refuse(module: &Module, kernel: &Function, launch: &Launch) -> std::result::Result<(), String> {
    let product = |e: [u32; 3]| e.iter().fold(1u64, |n, e| n.saturating_mul(u64::from(*e)));
    let (blocks, threads) = (product(launch.grid), product(launch.block));
    if !(1..=1 << 21).contains(&blocks) {
        return Err(format!("a grid of {blocks} blocks, 1 to 2097152 can be emulated"));
    }
    if !(1..=1024).contains(&threads) {
        return Err(format!("a block of {threads} threads, 1 to 1024 are possible"));
    }
    if kernel.most_threads.is_some_and(|most| threads > u64::from(most)) {
        return Err(format!(
            "a block of {threads} threads, the kernel was compiled for {:?}",
            kernel.most_threads
        ));
    }
    let ([gx, gy, gz], cluster @ [x, y, z]) = (launch.grid, launch.cluster);
    let inside = product(cluster);
    if !(1..=MOST_BLOCKS).contains(&inside) {
        return Err(format!("a cluster of {inside} blocks, 1 to {MOST_BLOCKS} are possible"));
    }
    if kernel.most_cluster.is_some_and(|most| inside > u64::from(most)) {
        let most = kernel.most_cluster.unwrap_or(1);
        return Err(format!("a cluster of {inside} blocks, the kernel was compiled for {most} at most"));
    }
    if kernel.explicit_cluster && kernel.cluster.is_none() && inside == 1 {
        return Err(
            "no cluster, the kernel was compiled for launches that give one (.explicitcluster)".into()
        );
    }
    if gx % x + gy % y + gz % z != 0 {
        return Err(format!(
            "a grid of {:?} blocks is no whole number of clusters of {cluster:?}",
            launch.grid
        ));
    }
    if kernel.cluster.is_some_and(|own| own != cluster) {
        return Err(format!("clusters of {cluster:?}, the kernel was compiled for {:?}", kernel.cluster));
    }
    if inside > 1 && module.target < 90 {
        return Err(format!("a cluster of {inside} blocks, sm_{} has none (sm_90 does)", module.target));
    }
    let fixed: usize = module.shared.iter().chain(&kernel.shared).map(|v| v.size).sum();
    if launch.shared > MOST_SHARED || fixed + launch.shared > MOST_SHARED {
        let dynamic = launch.shared;
        return Err(format!("{fixed} + {dynamic} bytes of shared memory, at most {MOST_SHARED} are there"));
    }
    Ok(())
}

fn parameters(kernel: &Function, args: &Args<'_>) -> std::result::Result<Vec<u8>, String> {
    if args.len() != kernel.params.len() {
        return Err(format!("{} arguments were given, it takes {}", args.len(), kernel.params.len()));
    }
    let mut bytes = vec![0; kernel.param_bytes as usize];
    for (i, (arg, param)) in args.iter().zip(&kernel.params).enumerate() {
        if arg.len() != param.size {
            return Err(format!("argument {i} has {} bytes, the parameter has {}", arg.len(), param.size));
        }
        bytes[param.offset..param.offset + param.size].copy_from_slice(arg);
    }
    Ok(bytes)
}
