//! `--shard`: the part of the texts that a process encodes, as written, or as an engine's variables have it.

use crate::cli::engine::{RANKS, SLURM, STEP, number, ranks};
use crate::encode::part::Part;
use crate::error::{Error, Result};
use std::path::Path;
use std::str::FromStr;

/// What `--shard` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shard {
    /// This part, `I/N`.
    Of(Part),
    /// The rank of this process among all that were started.
    Auto,
    /// Likewise, or the task of a job array, among so many.
    AutoOf(u64),
}

/// Who asks for the variables.
const AUTO: &str = "--shard auto";

/// Counted from where the user began; job arrays have no size that holds when a task of them is submitted again.
const ARRAY: &str = "SLURM_ARRAY_TASK_ID";

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Shard, String> {
        let count = |n: &str| n.parse().ok().filter(|n| *n > 0);
        let shard = match text.split_once('/') {
            None if text == "auto" => Some(Shard::Auto),
            None => None,
            Some(("auto", n)) => count(n).map(Shard::AutoOf),
            Some((i, n)) => {
                let part = i.parse().ok().zip(count(n)).filter(|(i, n)| (1..=*n).contains(i));
                part.map(|(number, of)| Shard::Of(Part { number, of }))
            }
        };
        shard.ok_or_else(|| "expected I/N with 1 <= I <= N, for instance 2/4, or auto, or auto/N".into())
    }
}

impl Shard {
    /// Whether the part comes from variables, and its file is named by it.
    pub fn is_auto(self) -> bool {
        !matches!(self, Shard::Of(_))
    }

    /// The part, by these variables where it is to come from them.
    pub fn part(self, var: impl Fn(&str) -> Option<String>) -> Result<Part> {
        let wrong = |what: String| Err(Error::usage(format!("--shard {what}")));
        let array = number(AUTO, ARRAY, &var)?;
        let of = match self {
            Shard::Of(part) => return Ok(part),
            Shard::Auto => None,
            Shard::AutoOf(n) => Some(n),
        };
        match (array, of) {
            (Some(_), None) => {
                let what = "auto: in a job array write how many tasks it has, auto/16 for --array=1-16";
                return wrong(format!("{what}: a task that is submitted again would think itself the whole"));
            }
            (Some(task), Some(n)) => {
                // A script of several tasks that starts one process is one process.
                let slurm = var(STEP).is_some();
                if let Some((names, [_, size])) = ranks(AUTO, &var, slurm)?.filter(|(_, [_, size])| *size > 1)
                {
                    let what = format!("auto/{n}: {ARRAY} is {task} and {} is {size}", names[1]);
                    return wrong(format!("{what}, a part of a part; give I/N"));
                }
                return match (1..=n).contains(&task) {
                    true => Ok(Part { number: task, of: n }),
                    false => wrong(format!("auto/{n}: {ARRAY} is {task}, 1 to {n} was wanted")),
                };
            }
            (None, _) => {}
        }
        let Some((names, [rank, size])) = ranks(AUTO, &var, true)? else {
            let list: Vec<String> = RANKS.iter().chain([&SLURM]).map(|pair| pair.join("/")).collect();
            let what = format!("auto: none of {} is set, and no {ARRAY}", list.join(", "));
            return wrong(format!("{what}; start it by mpirun, srun or torchrun, or give I/N"));
        };
        if rank >= size {
            return wrong(format!("auto: {} is {rank} of {} {size}", names[0], names[1]));
        }
        match of {
            Some(n) if n != size => wrong(format!("auto/{n}: {} is {size}", names[1])),
            _ => Ok(Part { number: rank + 1, of: size }),
        }
    }
}

/// `vectors-00003-of-00016.npy` for `vectors.npy`.
pub fn part_path(path: &str, part: Part) -> String {
    let path = Path::new(path);
    let of = |text: Option<&std::ffi::OsStr>| text.unwrap_or_default().to_string_lossy().into_owned();
    let (stem, ending) = (of(path.file_stem()), of(path.extension()));
    let dot = if ending.is_empty() { "" } else { "." };
    let name = format!("{stem}-{:05}-of-{:05}{dot}{ending}", part.number, part.of);
    path.with_file_name(name).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str, set: &[(&str, &str)]) -> std::result::Result<[u64; 2], String> {
        let var = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        let shard: Shard = text.parse()?;
        shard.part(var).map(|part| [part.number, part.of]).map_err(|e| e.to_string())
    }

    #[test]
    fn the_part_follows_the_engine() {
        let ompi = [("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4")];
        let slurm = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "3")];
        let both = [&ompi[..], &slurm].concat();
        for (text, set, wanted) in [
            ("2/4", &[][..], [2, 4]),
            ("2/4", &ompi, [2, 4]),
            ("auto", &ompi, [3, 4]),
            ("auto", &[("PMI_RANK", "0"), ("PMI_SIZE", "1")], [1, 1]),
            ("auto", &[("RANK", "7"), ("WORLD_SIZE", "8")], [8, 8]),
            ("auto", &[("RANK", "7"), ("WORLD_SIZE", "8"), ("PMI_RANK", "7"), ("PMI_SIZE", "8")], [8, 8]),
            ("auto", &slurm, [1, 3]),
            // mpirun inside of an sbatch script, which is task 0 of its own.
            ("auto", &both, [3, 4]),
            ("auto/4", &ompi, [3, 4]),
            ("auto/16", &[("SLURM_ARRAY_TASK_ID", "3")], [3, 16]),
            (
                "auto/16",
                &[("SLURM_ARRAY_TASK_ID", "16"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")],
                [16, 16],
            ),
            ("auto/2", &[("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")], [1, 2]),
            ("auto", &[("RANK", ""), ("WORLD_SIZE", ""), ("PMI_RANK", "1"), ("PMI_SIZE", "2")], [2, 2]),
        ] {
            assert_eq!(part(text, set), Ok(wanted), "{text} {set:?}");
        }
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for (text, set, words) in [
            ("auto", &[][..], "none of OMPI_COMM_WORLD_RANK/OMPI_COMM_WORLD_SIZE"),
            ("auto", &[("RANK", "1")], "RANK is set and WORLD_SIZE is not"),
            ("auto", &[("SLURM_NTASKS", "2")], "SLURM_NTASKS is set and SLURM_PROCID is not"),
            ("auto", &[("RANK", "1"), ("WORLD_SIZE", "2"), ("PMI_RANK", "0"), ("PMI_SIZE", "2")], "disagree"),
            ("auto", &[("RANK", "2"), ("WORLD_SIZE", "2")], "RANK is 2 of WORLD_SIZE 2"),
            ("auto", &[("RANK", "-1"), ("WORLD_SIZE", "2")], "RANK is \"-1\""),
            ("auto", &[("SLURM_ARRAY_TASK_ID", "3")], "auto/16 for --array=1-16"),
            ("auto/16", &[("SLURM_ARRAY_TASK_ID", "0")], "SLURM_ARRAY_TASK_ID is 0, 1 to 16"),
            ("auto/16", &[("SLURM_ARRAY_TASK_ID", "17")], "1 to 16 was wanted"),
            (
                "auto/16",
                &[("SLURM_ARRAY_TASK_ID", "1"), ("RANK", "0"), ("WORLD_SIZE", "2")],
                "a part of a part",
            ),
            (
                "auto/2",
                &[
                    ("SLURM_ARRAY_TASK_ID", "1"),
                    ("SLURM_STEP_ID", "0"),
                    ("SLURM_PROCID", "0"),
                    ("SLURM_NTASKS", "4"),
                ],
                "SLURM_NTASKS is 4",
            ),
            ("auto/3", &[("RANK", "0"), ("WORLD_SIZE", "2")], "auto/3: WORLD_SIZE is 2"),
        ] {
            let said = part(text, set).unwrap_err();
            assert!(said.contains(words), "{text} {set:?}: {said}");
        }
        for text in ["0/4", "5/4", "1/0", "auto/0", "auto/x", "x", "1", ""] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    #[test]
    fn parts_have_names_of_their_own() {
        let part = Part { number: 3, of: 16 };
        assert_eq!(part_path("out/vectors.npy", part), "out/vectors-00003-of-00016.npy");
        assert_eq!(part_path("v.1.jsonl", part), "v.1-00003-of-00016.jsonl");
    }
}
