#!/bin/bash
# Several processes under one command; no MPI is in the program, which reads its rank from the launcher's variables:
#   ./ranks.sh 4 MODEL texts.txt vectors.npy
set -euo pipefail
n=$1 model=$2 texts=$3 out=$4
encode=(llm2vec encode --shard auto --skip-done --quiet -m "$model" -i "$texts" -o "$out")
if command -v mpirun >/dev/null; then
    # More ranks than cores: Open MPI 4 and 5 want to be told, MPICH knows no such flag.
    export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
    mpirun -n "$n" "${encode[@]}"
elif [ -n "${SLURM_JOB_ID:-}" ]; then
    srun -n "$n" "${encode[@]}"
else # GNU parallel, or xargs: a rank is a variable like any other
    seq 0 $((n - 1)) | xargs -P "$n" -I{} env RANK={} WORLD_SIZE="$n" "${encode[@]}"
fi
printf -v all '%05d' "$n"
llm2vec join "${out%.*}"-*-of-"$all"."${out##*.}" -o "$out"
