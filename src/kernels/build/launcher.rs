//! Writes the Rust side of what `signature` has read: a struct of arguments and a launcher for each KERNEL, and the twins of
//! the PARAMS structs. `build.rs` and the tests include it.
//!
//! A struct is named like its kernel, `rmsnorm_fwd` becoming `RmsnormFwd`; its fields like the C parameters, in lower case
//! and without `_or_null`.

use super::signature::{Entry, Kind, Params, Unit};
use std::fmt::Write;

/// The Rust module of one file: constants, arguments, launchers. It stands where `device::gpu`, `Tensor`, `DType`, `limited`,
/// `Result` and the twins are in scope, beside a static `FILE` that holds its images.
pub fn launchers(unit: &Unit) -> String {
    let mut out = String::new();
    for (name, kind, value) in &unit.constants {
        writeln!(out, "/// EXPORT of kernels/{}.cu.\npub const {name}: {kind} = {value};", unit.stem)
            .unwrap();
    }
    let mut rest = &unit.kernels[..];
    while let Some(first) = rest.first() {
        let family = |k: &Entry| k.family.as_ref().map(|f| f.name.clone());
        let alike = |k: &&Entry| family(k) == family(first);
        let count = if first.family.is_some() { rest.iter().take_while(alike).count() } else { 1 };
        let kernels;
        (kernels, rest) = rest.split_at(count);
        out += &launcher(&unit.stem, kernels);
    }
    out
}

/// Arguments and launcher of one kernel, or of all that one KERNELS declares.
fn launcher(stem: &str, kernels: &[Entry]) -> String {
    let Entry { name, family, parameters } = &kernels[0];
    let name = family.as_ref().map_or(name, |f| &f.name);
    let (kind, title) = (if family.is_some() { "KERNELS" } else { "KERNEL" }, camel(name));
    let borrows = parameters.iter().any(|(_, kind)| matches!(kind, Kind::Array { .. } | Kind::TensorMap));
    let mut fields = String::new();
    if let Some(f) = family {
        let by = f.constant.to_lowercase();
        writeln!(fields, "    /// `{}`: which of the kernels.\n    pub {by}: i32,", f.constant).unwrap();
    }
    for (name, kind) in parameters {
        let field = name.to_lowercase();
        writeln!(fields, "    /// `{name}`.\n    pub {field}: {},", rust_type(kind)).unwrap();
    }
    let arguments: Vec<String> = parameters.iter().map(|(name, kind)| argument(name, kind)).collect();
    format!(
        "/// Arguments of {kind} `{name}` of kernels/{stem}.cu.\n\
         pub struct {title}{lifetime} {{\n{fields}}}\n\
         {values}\
         /// Launches {kind} `{name}` of kernels/{stem}.cu.\n\
         ///\n\
         /// # Safety\n\
         ///\n\
         /// For the numbers among the arguments, the arrays have the shapes that the file's head gives under `Shapes`, or\n\
         /// are longer; `launch` is spread as it says under `Plan`; indices in arrays point where it says.\n\
         pub unsafe fn {name}(gpu: &Gpu, launch: Launch, arguments: {title}) -> Result<()> {{\n\
         {choice}\
         \x20   let arguments = [{arguments}];\n\
         \x20   // SAFETY: in number, order and type these are the parameters of the signature that nvcc compiled; each\n\
         \x20   // array is alive, on this GPU and borrowed as the kernel uses it. The rest is this function's contract.\n\
         \x20   unsafe {{ gpu.launch(kernel, launch, &arguments) }}\n\
         }}\n",
        lifetime = if borrows { "<'a>" } else { "" },
        values = values(kernels),
        choice = choice(kernels),
        arguments = arguments.join(", "),
    )
}

/// `pub const RMSNORM_FWD`: the values of the constant that a family has kernels for.
fn values(kernels: &[Entry]) -> String {
    let list: Vec<String> =
        kernels.iter().filter_map(|k| k.family.as_ref()).map(|f| f.value.to_string()).collect();
    kernels[0].family.as_ref().map_or(String::new(), |f| {
        format!(
            "/// The values of {} that there is a `{}` for.\npub const {}: [i32; {}] = [{}];\n",
            f.constant,
            f.name,
            f.name.to_uppercase(),
            list.len(),
            list.join(", ")
        )
    })
}

/// The statement that gives `kernel`.
fn choice(kernels: &[Entry]) -> String {
    let one = |k: &Entry| format!("Kernel {{ name: \"{}\", file: &FILE }}", k.name);
    let Some(family) = &kernels[0].family else {
        return format!("    static KERNEL: Kernel = {};\n    let kernel = &KERNEL;\n", one(&kernels[0]));
    };
    let all: Vec<String> = kernels.iter().map(one).collect();
    format!(
        "    static KERNELS: [Kernel; {count}] = [{all}];\n\
         \x20   let Some(at) = {values}.iter().position(|&v| v == arguments.{by}) else {{\n\
         \x20       return limited(\"{name}\", format!(\"{constant} = {{}}\", arguments.{by}), \
         format!(\"{constant} in {{:?}}\", {values}));\n\
         \x20   }};\n\
         \x20   let kernel = &KERNELS[at];\n",
        count = kernels.len(),
        all = all.join(", "),
        values = family.name.to_uppercase(),
        by = family.constant.to_lowercase(),
        name = family.name,
        constant = family.constant,
    )
}

/// The `#[repr(C)]` twin of a PARAMS struct of this file; that it lies in memory as in C is checked when it is compiled.
pub fn twin(file: &str, params: &Params) -> String {
    let (name, bytes) = (&params.name, params.bytes);
    let (mut fields, mut checks) = (String::new(), format!("size_of::<{name}>() == {bytes}"));
    for (field, kind, offset) in &params.fields {
        let lower = field.to_lowercase();
        writeln!(fields, "    /// `{field}`.\n    pub {lower}: {kind},").unwrap();
        write!(checks, " && std::mem::offset_of!({name}, {lower}) == {offset}").unwrap();
    }
    format!(
        "/// PARAMS of kernels/{file}.\n\
         #[repr(C)]\n\
         #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]\n\
         pub struct {name} {{\n{fields}}}\n\
         const _: () = assert!({checks});\n"
    )
}

/// What makes nvcc refuse a PARAMS struct whose size or offsets are others than its twin's.
pub fn layout(params: &Params) -> String {
    let name = &params.name;
    let size = format!(
        "static_assert(sizeof({name}) == {}, \"the twin of {name} has another size\");\n",
        params.bytes
    );
    let offset = |(field, _, at): &(String, &str, usize)| {
        let what = format!("\"the twin of {name} has {field} elsewhere\"");
        format!("static_assert(__builtin_offsetof({name}, {field}) == {at}, {what});\n")
    };
    params.fields.iter().map(offset).fold(size, |all, line| all + &line)
}

/// `rmsnorm_fwd` to `RmsnormFwd`.
fn camel(name: &str) -> String {
    let word = |w: &str| w.chars().take(1).map(|c| c.to_ascii_uppercase()).chain(w.chars().skip(1)).collect();
    name.split('_').map(word).collect::<Vec<String>>().concat()
}

fn rust_type(kind: &Kind) -> String {
    match kind {
        Kind::Scalar(rust) => rust.to_string(),
        Kind::TensorMap => "&'a TensorMap".into(),
        Kind::Params(name) => name.clone(),
        Kind::Array { written, nullable, .. } => {
            let array = if *written { "&'a mut Tensor" } else { "&'a Tensor" };
            if *nullable { format!("Option<{array}>") } else { array.into() }
        }
    }
}

fn argument(name: &str, kind: &Kind) -> String {
    let field = format!("arguments.{}", name.to_lowercase());
    match kind {
        Kind::Scalar(rust) => format!("Argument::{}({field})", rust.to_uppercase()),
        Kind::TensorMap => format!("Argument::Map({field})"),
        Kind::Params(_) => format!("Argument::Bytes(bytemuck::bytes_of(&{field}))"),
        Kind::Array { dtype, nullable: false, .. } => {
            format!("{field}.argument(gpu, \"{name}\", DType::{dtype})?")
        }
        Kind::Array { dtype, nullable: true, .. } => {
            format!(
                "match {field} {{ Some(t) => t.argument(gpu, \"{name}\", DType::{dtype})?, None => Argument::Null }}"
            )
        }
    }
}
