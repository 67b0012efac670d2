//! What a PTX file is once it is read: functions, variables, and instructions with their places.

use super::op::Op;
use super::operand::Lanes;
use std::collections::HashMap;

/// No instruction: where nothing joins.
pub const NOWHERE: u32 = u32::MAX;

/// An instruction with its guard and its place.
#[derive(Clone, Debug)]
pub struct Inst {
    /// The predicate under which it runs.
    pub guard: Option<(u32, bool)>,
    /// What it does.
    pub op: Op,
    /// Registers that it reads or (true) writes and that some `wgmma` of its function holds.
    pub shares: Box<[(u32, bool)]>,
    /// Where lanes join again that part here.
    pub join: u32,
    /// Whether some do that parted elsewhere.
    pub joins: bool,
    /// Index into the module's locations.
    pub loc: u32,
    /// Line of the PTX text.
    pub line: u32,
}

/// `.loc`: a file and line, and where that was inlined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loc {
    /// Index of `.file`.
    pub file: u32,
    /// Line.
    pub line: u32,
    /// The location of the call into which it was inlined: itself an entry of the list.
    pub at: Option<u32>,
}

/// A variable, or a parameter.
#[derive(Clone, Debug)]
pub struct Variable {
    /// As it is spelled.
    pub name: String,
    /// Bytes.
    pub size: usize,
    /// Its alignment.
    pub align: usize,
    /// First byte, in its function's own space.
    pub offset: usize,
    /// Initial bytes, where there are any.
    pub init: Vec<u8>,
    /// Addresses within `init`: (offset, name of a variable of the module).
    pub init_addresses: Vec<(usize, String)>,
}

/// An entry or a function.
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// As it is spelled.
    pub name: String,
    /// Whether the host may launch it.
    pub entry: bool,
    /// Parameters, in the function's param space.
    pub params: Vec<Variable>,
    /// Return parameters.
    pub results: Vec<Variable>,
    /// First instruction.
    pub start: u32,
    /// Behind the last instruction; equal to `start` where there is only a declaration.
    pub end: u32,
    /// General registers.
    pub registers: u32,
    /// Predicates.
    pub predicates: u32,
    /// Bytes of param space.
    pub param_bytes: u32,
    /// Bytes of local memory.
    pub local_bytes: u32,
    /// Local variables.
    pub locals: Vec<Variable>,
    /// Static shared variables.
    pub shared: Vec<Variable>,
    /// `.maxntid`, where given.
    pub most_threads: Option<u32>,
    /// `.maxnreg`, where given.
    pub most_registers: Option<u32>,
    /// `.minnctapersm`; zero where not given.
    pub least_blocks: u32,
    /// `.reqnctapercluster`, where given.
    pub cluster: Option<[u32; 3]>,
    /// `.maxclusterrank`, where given.
    pub most_cluster: Option<u32>,
    /// `.explicitcluster`: whoever launches it says its cluster, unless `.reqnctapercluster` does.
    pub explicit_cluster: bool,
}

/// A read PTX file.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// The file's name, for messages.
    pub name: String,
    /// As `.target` says: 80, 90.
    pub target: u32,
    /// All functions' instructions.
    pub(crate) insts: Vec<Inst>,
    /// Entries and functions.
    pub functions: Vec<Function>,
    pub(crate) locs: Vec<Loc>,
    pub(crate) files: HashMap<u32, String>,
    pub(crate) consts: Vec<Lanes>,
    /// Variables of global and constant memory; the flag says constant.
    pub(crate) globals: Vec<(Variable, bool)>,
    /// Shared variables outside functions.
    pub(crate) shared: Vec<Variable>,
    pub(crate) tables: Vec<Vec<u32>>,
}

impl Module {
    /// `file.cu:12`, with the place of inlining.
    pub fn place(&self, inst: &Inst) -> String {
        let Some(loc) = self.locs.get(inst.loc as usize) else {
            return format!("{}:{}", self.name, inst.line);
        };
        let name =
            |loc: &Loc| format!("{}:{}", self.files.get(&loc.file).map_or("?", String::as_str), loc.line);
        let mut text = name(loc);
        let mut outer = loc.at;
        // An entry's caller stands before it in the list, so this ends.
        while let Some(caller) = outer.and_then(|i| self.locs.get(i as usize)) {
            text += if loc.at == outer { " (inlined at " } else { ", " };
            text += &name(caller);
            outer = caller.at;
        }
        if loc.at.is_some() {
            text.push(')');
        }
        text
    }
}
