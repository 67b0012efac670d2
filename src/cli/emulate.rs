//! `llm2vec emulate`: any kernel of a PTX file on the checking emulator, from `.npy` to `.npy`.

use crate::cli::{print, say};
use crate::device::emulated::failure;
use crate::device::emulator::{
    self, Checks, Counters, Emulator, Finding, Kind, Launch, Module, Severity, Swizzle, TensorMap,
};
use crate::error::{Error, Result};
use crate::format::{atomic, npy};
use clap::builder::{BoolishValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use half::{bf16, f16};
use std::path::{Path, PathBuf};

/// Run a kernel of a PTX file on the CPU, checked and counted: no GPU needed.
#[derive(Args)]
#[command(after_help = "\
Arguments, in the kernel's order:
  --arg f32:x.npy               an array that the kernel reads (f32, f16, bf16, i8, i32, i64)
  --arg out:f32:16,128:y.npy    an array that it writes, and its shape
  --arg inout:f32:x.npy:y.npy   both
  --arg map:64,32:128:f32:x.npy the tensor map of an array (any of the above), by tiles of 64 rows and 32
                                columns, swizzled within 128 bytes (or 64, 32; 0: not)
  --arg scratch:4096            bytes that nothing has written
  --arg i32=5                   a number (i32, u32, i64, u64, f32, f64)
bf16 arrays are f32 in files.

Example:
  nvcc -ptx -lineinfo -arch=compute_80 add.cu
  llm2vec emulate --ptx add.ptx --kernel add --grid 4 --block 256 \\
      --arg out:f32:1000:c.npy --arg f32:a.npy --arg f32:b.npy --arg i32=1000")]
pub struct Emulate {
    /// PTX file; compiled with -lineinfo, reports name lines of the source
    #[arg(long, env = "LLM2VEC_PTX", value_name = "FILE")]
    ptx: PathBuf,
    /// Entry point, as the PTX spells it
    #[arg(long, env = "LLM2VEC_KERNEL", value_name = "NAME")]
    kernel: String,
    /// Blocks
    #[arg(long, env = "LLM2VEC_GRID", value_name = "X[,Y,Z]", default_value = "1")]
    grid: String,
    /// Threads of a block
    #[arg(long, env = "LLM2VEC_BLOCK", value_name = "X[,Y,Z]")]
    block: String,
    /// Blocks of a cluster; unless given, what the kernel was compiled for
    #[arg(long, env = "LLM2VEC_CLUSTER", value_name = "X[,Y,Z]", default_value = "1")]
    cluster: String,
    /// Bytes of dynamic shared memory
    #[arg(long, env = "LLM2VEC_SMEM", value_name = "BYTES", default_value_t = 0)]
    smem: usize,
    /// An argument of the kernel, in order; several are apart by ;
    #[arg(long, env = "LLM2VEC_ARG", value_delimiter = ';', value_name = "WHAT")]
    arg: Vec<String>,
    /// Picks the schedule of warps and blocks
    #[arg(long, env = "LLM2VEC_SEED", value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Warp instructions of a chunk of the grid (a sixteenth, or 8 blocks) after which it gives up
    #[arg(long, env = "LLM2VEC_BUDGET", value_name = "N", default_value_t = Launch::default().budget)]
    budget: u64,
    /// Report what NVIDIA's own headers and samples do against the ISA, too: a plain first read before a loop of
    /// atom.cas, a last block that reads without a fence, mbarrier.init and a barrier without fence.mbarrier_init
    #[arg(long, env = "LLM2VEC_STRICT", value_parser = BoolishValueParser::new())]
    strict: bool,
    /// Go on behind a finding where that is possible, and print all of them with their counts
    #[arg(long, env = "LLM2VEC_KEEP_GOING", value_parser = BoolishValueParser::new())]
    keep_going: bool,
    /// Only note findings of this kind, and go on behind them where that is possible
    #[arg(long, env = "LLM2VEC_ALLOW", value_delimiter = ',', value_name = "KIND", value_parser = kinds())]
    allow: Vec<Kind>,
    /// Print what was counted, in total and by source line
    #[arg(long, env = "LLM2VEC_COUNTERS", value_name = "FORM")]
    counters: Option<Form>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    Table,
    Json,
}

/// Element types of arrays.
#[derive(Clone, Copy)]
enum Element {
    F32,
    F16,
    Bf16,
    I8,
    I32,
    I64,
}

/// An array to be written at the end.
struct Output {
    element: Element,
    shape: Vec<usize>,
    address: u64,
    path: PathBuf,
}

impl Emulate {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let text = std::fs::read(&self.ptx).map_err(|e| Error::io(&self.ptx, e))?;
        let text =
            String::from_utf8(text).map_err(|_| Error::file(&self.ptx, "is no text; PTX was wanted"))?;
        let module = Module::parse(&self.ptx.to_string_lossy(), &text).map_err(failure)?;
        let mut emulator = Emulator::new(module).map_err(failure)?;
        let (strict, keep_going, allow) = (self.strict, self.keep_going, self.allow);
        emulator.checks = Checks { strict, keep_going, allow };
        let (mut values, mut outputs) = (Vec::new(), Vec::new());
        for (i, arg) in self.arg.iter().enumerate() {
            values.push(argument(&mut emulator, &format!("arg{i}"), arg, &mut outputs)?);
        }
        let launch = Launch {
            grid: extents("--grid", &self.grid)?,
            block: extents("--block", &self.block)?,
            cluster: extents("--cluster", &self.cluster)?,
            shared: self.smem,
            overlap: false,
            seed: self.seed,
            budget: self.budget,
            workers: rayon::current_num_threads(),
        };
        let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        let ran = emulator.launch(&self.kernel, &launch, &values);
        let errors = findings(emulator.findings());
        let counters = ran.map_err(failure)?;
        if let Some(first) = errors {
            self.counters.map_or(Ok(()), |form| form.print(&counters))?;
            return Err(first);
        }
        for output in outputs {
            let count: usize = output.shape.iter().product();
            let bytes = emulator.read(output.address, count * output.element.size()).map_err(failure)?;
            atomic::write(&output.path, &output.element.file(&output.shape, &bytes))?;
        }
        self.counters.map_or(Ok(()), |form| form.print(&counters))
    }
}

impl Form {
    fn print(self, counters: &Counters) -> Result<()> {
        match self {
            Form::Table => print(&counters.table()),
            Form::Json => print(&counters.json()),
        }
    }
}

/// The words of `--allow`.
fn kinds() -> impl TypedValueParser<Value = Kind> {
    PossibleValuesParser::new(Kind::ALL.map(Kind::word)).try_map(|word| word.parse::<Kind>())
}

/// Says what a launch has noted, a line each; gives an error that says how many errors there were, if any.
fn findings(found: &[Finding]) -> Option<Error> {
    for Finding { severity, what, count, .. } in found {
        let weight = if *severity == Severity::Note { "note" } else { "error" };
        let times = if *count == 1 { "once".to_string() } else { format!("{count} times") };
        say(format!("{weight}, {times}: {what}"));
    }
    let errors: Vec<&Finding> = found.iter().filter(|f| f.severity == Severity::Error).collect();
    let (kind, times) = (errors.first()?.kind, errors.iter().map(|f| f.count).sum::<u64>());
    let what = format!("{times} findings at {} instructions; no output was written", errors.len());
    Some(Error::Finding { kind, what })
}

fn extents(flag: &str, text: &str) -> Result<[u32; 3]> {
    let wrong =
        || Error::usage(format!("{flag} {text}: expected one to three whole numbers, such as 16 or 8,8,1"));
    let mut extents = [1; 3];
    for (i, part) in text.split(',').enumerate() {
        *extents.get_mut(i).ok_or_else(wrong)? = part.trim().parse().map_err(|_| wrong())?;
    }
    Ok(extents)
}

/// An array in the emulator's memory.
struct Array {
    element: Element,
    shape: Vec<usize>,
    address: u64,
}

/// Reads one `--arg`, and makes its memory; gives the parameter's bytes.
fn argument(emulator: &mut Emulator, name: &str, arg: &str, outputs: &mut Vec<Output>) -> Result<Vec<u8>> {
    let wrong = |what: &str| Error::usage(format!("--arg {arg}: {what}; see llm2vec emulate --help"));
    if let Some((ty, value)) = arg.split_once('=') {
        return number(ty, value).ok_or_else(|| wrong("no number of a known type"));
    }
    if let Some(bytes) = arg.strip_prefix("scratch:") {
        let bytes = bytes.parse().ok().filter(|n| *n <= 1usize << 33);
        let address = emulator.allocate(name, bytes.ok_or_else(|| wrong("no number of bytes"))?);
        return Ok(address.to_le_bytes().to_vec());
    }
    let Some(map) = arg.strip_prefix("map:") else {
        let array = array(emulator, name, arg, outputs, &wrong)?;
        return Ok(array.address.to_le_bytes().to_vec());
    };
    let [tile, swizzle, of] = map.splitn(3, ':').collect::<Vec<_>>()[..] else {
        return Err(wrong("expected map:TILE:SWIZZLE:ARRAY"));
    };
    let tile: Option<Vec<u32>> = tile.split(',').map(|n| n.trim().parse().ok()).collect();
    let swizzle = match swizzle {
        "0" => Swizzle::None,
        "32" => Swizzle::B32,
        "64" => Swizzle::B64,
        "128" => Swizzle::B128,
        _ => return Err(wrong("map:TILE:SWIZZLE:ARRAY takes a swizzle of 0, 32, 64 or 128 bytes")),
    };
    let tile = tile.ok_or_else(|| wrong("no tile such as 64,32"))?;
    let array = array(emulator, name, of, outputs, &wrong)?;
    Ok(emulator.tensor_map(&array.map(&tile, swizzle)).map_err(failure)?.to_vec())
}

/// Makes the memory of an array.
fn array(
    emulator: &mut Emulator,
    name: &str,
    text: &str,
    outputs: &mut Vec<Output>,
    wrong: &dyn Fn(&str) -> Error,
) -> Result<Array> {
    let parts: Vec<&str> = text.splitn(4, ':').collect();
    let element = |text: &str| Element::parse(text).ok_or_else(|| wrong("no known element type"));
    match parts[..] {
        ["out", ty, shape, path] => {
            let shape: Option<Vec<usize>> = shape.split(',').map(|n| n.trim().parse().ok()).collect();
            let shape = shape.ok_or_else(|| wrong("no shape such as 16,128"))?;
            let element = element(ty)?;
            let bytes =
                shape.iter().try_fold(element.size(), |n, d| n.checked_mul(*d)).filter(|n| *n <= 1 << 33);
            let address = emulator.allocate(name, bytes.ok_or_else(|| wrong("more than 8 GiB"))?);
            outputs.push(Output { element, shape: shape.clone(), address, path: path.into() });
            Ok(Array { element, shape, address })
        }
        ["inout", ty, from, to] => {
            let array = Array::load(emulator, name, element(ty)?, Path::new(from))?;
            let (element, shape, address) = (array.element, array.shape.clone(), array.address);
            outputs.push(Output { element, shape, address, path: to.into() });
            Ok(array)
        }
        [ty, ..] if Element::parse(ty).is_some() && parts.len() > 1 => {
            Array::load(emulator, name, element(ty)?, Path::new(&text[ty.len() + 1..]))
        }
        _ => Err(wrong(
            "expected TYPE:FILE, out:TYPE:SHAPE:FILE, inout:TYPE:FILE:FILE, map:TILE:SWIZZLE:ARRAY, scratch:BYTES or \
             TYPE=NUMBER",
        )),
    }
}

impl Array {
    fn load(emulator: &mut Emulator, name: &str, element: Element, path: &Path) -> Result<Array> {
        let (shape, bytes) = element.load(path)?;
        let address = emulator.allocate(name, bytes.len());
        emulator.write(address, &bytes).map_err(failure)?;
        Ok(Array { element, shape, address })
    }

    /// Its tensor map: rows lie one behind the other, and `tile` has its sides in the order of the shape.
    fn map(&self, tile: &[u32], swizzle: Swizzle) -> TensorMap {
        let sizes: Vec<u64> = self.shape.iter().rev().map(|n| *n as u64).collect();
        let row = |bytes: &mut u64, n: &u64| {
            *bytes = bytes.saturating_mul(*n);
            Some(*bytes)
        };
        let strides = sizes.iter().scan(self.element.size() as u64, row);
        let strides = strides.take(sizes.len().saturating_sub(1)).collect();
        let element = match self.element {
            Element::F32 => emulator::Element::F32,
            Element::F16 => emulator::Element::F16,
            Element::Bf16 => emulator::Element::Bf16,
            Element::I8 => emulator::Element::U8,
            Element::I32 => emulator::Element::I32,
            Element::I64 => emulator::Element::I64,
        };
        let tile: Vec<u32> = tile.iter().rev().copied().collect();
        TensorMap {
            element,
            address: self.address,
            sizes,
            strides,
            steps: vec![1; tile.len()],
            tile,
            swizzle,
        }
    }
}

fn number(ty: &str, value: &str) -> Option<Vec<u8>> {
    Some(match ty {
        "i32" => value.parse::<i32>().ok()?.to_le_bytes().to_vec(),
        "u32" => value.parse::<u32>().ok()?.to_le_bytes().to_vec(),
        "i64" => value.parse::<i64>().ok()?.to_le_bytes().to_vec(),
        "u64" => value.parse::<u64>().ok()?.to_le_bytes().to_vec(),
        "f32" => value.parse::<f32>().ok()?.to_le_bytes().to_vec(),
        "f64" => value.parse::<f64>().ok()?.to_le_bytes().to_vec(),
        _ => return None,
    })
}

impl Element {
    fn parse(text: &str) -> Option<Element> {
        Some(match text {
            "f32" => Element::F32,
            "f16" => Element::F16,
            "bf16" => Element::Bf16,
            "i8" => Element::I8,
            "i32" => Element::I32,
            "i64" => Element::I64,
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Element::I8 => 1,
            Element::F16 | Element::Bf16 => 2,
            Element::F32 | Element::I32 => 4,
            Element::I64 => 8,
        }
    }

    /// A file's shape and its elements as the device holds them.
    fn load(self, path: &Path) -> Result<(Vec<usize>, Vec<u8>)> {
        let array = npy::read(path)?;
        let bytes = match (self, &array.data) {
            (Element::F32, npy::Data::F32(v)) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            (Element::F16, npy::Data::F16(v)) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            (Element::F16, npy::Data::F32(v)) => {
                v.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
            }
            (Element::Bf16, npy::Data::F32(v)) => {
                v.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
            }
            (Element::I8, npy::Data::I8(v)) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            (Element::I32, npy::Data::I32(v)) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            (Element::I64, npy::Data::I64(v)) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            _ => return Err(Error::file(path, "holds elements of another type than --arg says")),
        };
        Ok((array.shape, bytes))
    }

    /// The bytes of a `.npy` file.
    fn file(self, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
        let descr = match self {
            Element::F32 | Element::Bf16 => "<f4",
            Element::F16 => "<f2",
            Element::I8 => "|i1",
            Element::I32 => "<i4",
            Element::I64 => "<i8",
        };
        let shape: Vec<u64> = shape.iter().map(|n| *n as u64).collect();
        let mut file = npy::header(descr, &shape);
        match self {
            Element::Bf16 => bytes
                .as_chunks()
                .0
                .iter()
                .for_each(|b| file.extend(bf16::from_le_bytes(*b).to_f32().to_le_bytes())),
            _ => file.extend(bytes),
        }
        file
    }
}
