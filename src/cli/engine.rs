//! What the engines that start processes say of them by variables: mpirun, srun, torchrun.

use crate::device::cuda;
use crate::error::{Error, Result};

/// Pairs of variables that say which of how many processes this is, counted from 0.
pub const RANKS: [[&str; 2]; 3] =
    [["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"], ["PMI_RANK", "PMI_SIZE"], ["RANK", "WORLD_SIZE"]];

/// What srun sets; a script of sbatch has it too, as task 0, and whatever it starts inherits that.
pub const SLURM: [&str; 2] = ["SLURM_PROCID", "SLURM_NTASKS"];

/// What srun sets beside them, and sbatch does not.
pub const STEP: &str = "SLURM_STEP_ID";

/// Which of the processes of its machine this is, from 0.
const LOCAL_RANKS: [&str; 4] =
    ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "LOCAL_RANK", "SLURM_LOCALID"];

/// A variable that is a whole number; an empty one is not set.
pub fn number(asker: &str, name: &str, var: &impl Fn(&str) -> Option<String>) -> Result<Option<u64>> {
    let Some(text) = var(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    let wrong = || Error::usage(format!("{asker}: {name} is {text:?}, a whole number was wanted"));
    text.trim().parse().map(Some).map_err(|_| wrong())
}

/// The names of rank and size, and what they are.
pub type Pair = ([&'static str; 2], [u64; 2]);

/// Rank and size by the first pair that is set; Slurm's own, where they count, only where no other is.
pub fn ranks(asker: &str, var: &impl Fn(&str) -> Option<String>, slurm: bool) -> Result<Option<Pair>> {
    let pair = |names: [&'static str; 2]| {
        let [rank, size] = [number(asker, names[0], var)?, number(asker, names[1], var)?];
        match (rank, size) {
            (Some(rank), Some(size)) => Ok(Some((names, [rank, size]))),
            (None, None) => Ok(None),
            (rank, _) => {
                let [set, not] = if rank.is_some() { [names[0], names[1]] } else { [names[1], names[0]] };
                Err(Error::usage(format!("{asker}: {set} is set and {not} is not; set both or neither")))
            }
        }
    };
    let found = RANKS.into_iter().filter_map(|names| pair(names).transpose()).collect::<Result<Vec<_>>>()?;
    if let Some((names, numbers)) = found.first() {
        if let Some((other, _)) = found.iter().find(|(_, others)| others != numbers) {
            let what = format!("{} and {} disagree", names.join("/"), other.join("/"));
            return Err(Error::usage(format!("{asker}: {what}; unset one pair")));
        }
        return Ok(found.into_iter().next());
    }
    if slurm { pair(SLURM) } else { Ok(None) }
}

/// Which of the processes of its machine this is, where anything says so.
fn local_rank(var: impl Fn(&str) -> Option<String>) -> Option<usize> {
    LOCAL_RANKS.iter().find_map(|name| var(name)?.trim().parse().ok())
}

/// The device of this process among those of its machine: a card of its own where there are several.
pub fn device() -> String {
    let cards = cuda::gpus().map_or(0, |list| list.len());
    match local_rank(variable) {
        Some(rank) if cards > 1 => format!("cuda:{}", rank % cards),
        _ => "auto".into(),
    }
}

/// A variable of this process.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// How many ranks of MPI this process is one of, by whoever started it; `None` if it stands alone. What torchrun started is
/// refused: each would train the same run into the same folder.
pub fn mpi_size(var: impl Fn(&str) -> Option<String>) -> Result<Option<usize>> {
    // Half a pair says nothing.
    let set = |name: &&str| var(name).is_some_and(|text| !text.is_empty());
    let paired =
        |name: &str| RANKS.iter().chain([&SLURM]).all(|pair| !pair.contains(&name) || pair.iter().all(set));
    let var = |name: &str| var(name).filter(|_| paired(name));
    // A script of several tasks that starts one process is one process.
    let Some((names, [rank, size])) = ranks("train", &var, var(STEP).is_some())? else { return Ok(None) };
    if size < 2 {
        return Ok(None);
    }
    let [torch_rank, torch_size] = RANKS[2];
    if names == RANKS[2] {
        let what = format!("train: {torch_rank} is {rank} of {torch_size} {size}, as torchrun sets them");
        return Err(Error::usage(format!(
            "{what}; ranks of MPI train together: mpirun -n {size} llm2vec train"
        )));
    }
    Ok(Some(size as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(set: &[(&str, &str)]) -> std::result::Result<Option<usize>, String> {
        let var = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        mpi_size(var).map_err(|e| e.to_string())
    }

    #[test]
    fn processes_that_were_started_together_know_it() {
        let slurm = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")];
        for (set, wanted) in [
            (&[][..], None),
            (&[("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4")], Some(4)),
            (&[("PMI_RANK", "0"), ("PMI_SIZE", "1")], None),
            // A script of four tasks that runs one process, and what srun starts.
            (&slurm, None),
            (&[slurm[0], slurm[1], ("SLURM_STEP_ID", "0")], Some(4)),
            (&[("RANK", "0"), ("WORLD_SIZE", "1")], None),
            (&[("RANK", "3")], None),
            (&[("RANK", "0"), ("WORLD_SIZE", "2"), ("PMI_RANK", "0"), ("PMI_SIZE", "2")], Some(2)),
        ] {
            assert_eq!(size(set), Ok(wanted), "{set:?}");
        }
        let torchrun = size(&[("RANK", "1"), ("WORLD_SIZE", "2")]).unwrap_err();
        assert!(torchrun.contains("mpirun -n 2 llm2vec train"), "{torchrun}");
    }

    #[test]
    fn a_process_knows_its_place_on_its_machine() {
        let var = |name: &str| (name == "SLURM_LOCALID").then(|| "1".to_string());
        assert_eq!((local_rank(var), local_rank(|_| None)), (Some(1), None));
    }
}
