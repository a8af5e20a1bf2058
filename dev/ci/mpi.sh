# shellcheck shell=bash disable=SC2034 # the steps use these variables
# What the steps with several processes share, after env.sh: $out, the programs in it, mpi, same.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 # a container's user is root
export OMPI_MCA_rmaps_base_oversubscribe=1 OMP_NUM_THREADS=1
out=$PWD/build/processes
rm -rf "$out"
mkdir -p "$out"
read -ra flags <<< "$(make -s flags) -fopenmp -Wall -Wextra -Werror"
build() { # name, flags
  OMPI_CC=${CC:-gcc} mpicc -DUSE_MPI "${flags[@]}" "${@:2}" train_gpt_fp8.c -o "$out/$1" -lm
}
make -s data/tales.d/train.txt
run=("${short[@]}" -d 1024 -m 5 --shards 4)
last=00000006
mpi() { timeout 120 mpirun -np "$@" > "$out/said" 2>&1; } # processes, command
# Two runs' weights, moments, scales, logs without times.
same() { # also where bash ignores `set -e`
  cmp "$out/$1/model_$last.bin" "$out/$2/model_$last.bin" &&
    cmp "$out/$1/state_$last.bin" "$out/$2/state_$last.bin" &&
    diff <(grep -v '^#' "$out/$1/log.tsv" | cut -f1-7) \
      <(grep -v '^#' "$out/$2/log.tsv" | cut -f1-7) &&
    { [ ! -e "$out/$1/scales.tsv" ] || cmp "$out/$1/scales.tsv" "$out/$2/scales.tsv"; }
}
