#!/usr/bin/env bash
# shellcheck disable=SC2046,SC2086 # options are words
# Steps of one process with THREADS threads beside steps of as many processes with one thread, in
# turn, ROUNDS times: medians of a step, their ratio (efficiency), waiting, memory of a process.
#   ROUNDS=5 STEPS=12 THREADS=2 RUN='-e d6 -t 256 -b 4 -d 4096' dev/bench/processes.sh
# Prints a table in Markdown. Needs mpicc and mpirun (Debian: libopenmpi-dev, openmpi-bin).
set -euo pipefail
cd "$(dirname "$0")/../.."
threads=${THREADS:-2} rounds=${ROUNDS:-5} steps=${STEPS:-12}
run=${RUN:--e d6 -t 256 -b 4 -d 4096}
export LC_ALL=C OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=build/bench-processes
rm -rf $work && mkdir -p $work
make -s data/tales.d/train.txt
for name in fp8:0 bf16:2; do
  OMPI_CC=${CC:-cc} mpicc -DUSE_MPI $(make -s flags) -fopenmp -march=native \
    -mprefer-vector-width=512 -DPRECISION=${name#*:} train_gpt_fp8.c -o $work/${name%:*} -lm
done
median() {
  sort -g | awk '{ x[NR] = $1 } END { print (x[int((NR + 1) / 2)] + x[int(NR / 2) + 1]) / 2 }'
}
column() { grep -v '^#' $work/log/log.tsv | tail -n +4 | cut -f"$1"; } # without warm-up
once() { # name, threads, options, mpirun
  rm -rf $work/log
  OMP_NUM_THREADS=$2 $4 $work/$build $run $3 --shards $threads \
    -x "$steps" -v 0 -s 0 -n 0 -o $work/log > $work/said
  column 8 >> $work/"$1".ms
  column 11 >> $work/"$1".wait
  grep -o 'planned [0-9.]*' $work/said | tail -1 | cut -d' ' -f2 > $work/"$1".planned
  grep -o 'peak memory [0-9.]*' $work/said | tail -1 | cut -d' ' -f3 > $work/"$1".peak
}
echo "| build | step, 1 process of $threads threads | step, $threads processes of 1 |" \
  "efficiency | waiting | planned MiB a process, 1 and $threads |"
echo "|---|---|---|---|---|---|"
for options in "fp8 " "fp8 --grad-comm bf16" "fp8 --grad-comm fp8" "bf16 "; do
  build=${options%% *}
  rm -f $work/*.ms $work/*.wait
  for _ in $(seq "$rounds"); do
    once one "$threads" "${options#* }" "" # mpirun would bind it to one core
    once many 1 "${options#* }" "mpirun --oversubscribe -np $threads"
  done
  one=$(median < $work/one.ms) many=$(median < $work/many.ms)
  echo "| $options | $one ms | $many ms | $(echo "scale=3; $one / $many" | bc) |" \
    "$(median < $work/many.wait) ms | $(cat $work/one.planned), $(cat $work/many.planned) |"
done
