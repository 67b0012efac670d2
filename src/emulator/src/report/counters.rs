//! What a launch did, exactly: per instruction, and from that per source line and in total.

use crate::isa::module::Module;
use std::collections::BTreeMap;

/// Counts of one instruction, one source line or one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Warp instructions issued.
    pub issued: u64,
    /// Lanes for which they ran.
    pub lanes: u64,
    /// Warp requests to global memory.
    pub requests: u64,
    /// 32-byte sectors that those touched.
    pub sectors: u64,
    /// Bytes that lanes asked global memory for.
    pub bytes: u64,
    /// Passes through shared memory.
    pub wavefronts: u64,
    /// Passes beyond those that the width of the accesses needs.
    pub conflicts: u64,
    /// Tensor-core multiplications and additions.
    pub flops: u64,
}

impl Count {
    /// Adds up.
    pub(crate) fn add(&mut self, other: &Count) {
        self.issued += other.issued;
        self.lanes += other.lanes;
        self.requests += other.requests;
        self.sectors += other.sectors;
        self.bytes += other.bytes;
        self.wavefronts += other.wavefronts;
        self.conflicts += other.conflicts;
        self.flops += other.flops;
    }

    fn json(&self) -> String {
        format!(
            "{{\"instructions\": {}, \"lane_instructions\": {}, \"global_requests\": {}, \"global_sectors\": {}, \
             \"global_bytes\": {}, \"shared_wavefronts\": {}, \"bank_conflicts\": {}, \"tensor_flops\": {}}}",
            self.issued,
            self.lanes,
            self.requests,
            self.sectors,
            self.bytes,
            self.wavefronts,
            self.conflicts,
            self.flops
        )
    }
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The whole launch.
    pub total: Count,
    /// Bytes of global memory that were read, each once: what comes from DRAM if the cache forgets nothing.
    pub read: u64,
    /// Bytes of global memory that were written, each once.
    pub written: u64,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory that the launch gave each block beside what the kernel declares.
    pub dynamic: usize,
    /// By `file.cu:line`.
    pub lines: BTreeMap<String, Count>,
}

impl Counters {
    /// From the counts of a module's instructions.
    pub(crate) fn new(module: &Module, counts: &[Count]) -> Counters {
        let mut counters = Counters::default();
        for (inst, count) in module.insts.iter().zip(counts).filter(|(_, c)| c.issued > 0) {
            counters.total.add(count);
            counters.lines.entry(module.place(inst)).or_default().add(count);
        }
        counters
    }

    /// As JSON: the total, and every line.
    pub fn json(&self) -> String {
        let quoted = |name: &str| name.replace('\\', "\\\\").replace('"', "\\\"");
        let lines: Vec<String> =
            self.lines.iter().map(|(name, c)| format!("    \"{}\": {}", quoted(name), c.json())).collect();
        format!(
            "{{\n  \"total\": {},\n  \"distinct_bytes\": {{\"read\": {}, \"written\": {}}},\n  \"lines\": {{\n{}\n  }}\n}}\n",
            self.total.json(),
            self.read,
            self.written,
            lines.join(",\n")
        )
    }

    /// As a table: the total, then every line; below it the bytes that were touched, each once.
    pub fn table(&self) -> String {
        let row = |name: &str, c: &Count| {
            let [a, b, d, e] = [c.issued, c.lanes, c.requests, c.sectors];
            let [f, g, h, i] = [c.bytes, c.wavefronts, c.conflicts, c.flops];
            format!("{a:>12} {b:>14} {d:>9} {e:>10} {f:>12} {g:>10} {h:>9} {i:>13}  {name}\n")
        };
        let head = format!(
            "{:>12} {:>14} {:>9} {:>10} {:>12} {:>10} {:>9} {:>13}  where\n",
            "instructions",
            "lanes",
            "requests",
            "sectors",
            "global bytes",
            "wavefronts",
            "conflicts",
            "tensor flops"
        );
        let lines: String = self.lines.iter().map(|(name, c)| row(name, c)).collect();
        let (read, written) = (self.read, self.written);
        let once = format!("{:>60} distinct bytes read, {written} written\n", read);
        head + &row("total", &self.total) + &lines + &once
    }
}
