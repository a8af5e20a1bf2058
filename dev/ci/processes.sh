#!/usr/bin/env bash
# `make MPI=1`. Several processes: 1, 2, 3 and 4 make the bits that one without MPI makes, in four
# precisions and with what is made per tensor, per block and per shard; also with two threads each,
# across a resume on another number, and over a network of two hosts.
set -eu
. "$(dirname "$0")/env.sh"
. "$(dirname "$0")/mpi.sh"
precisions=(fp8 fp16 bf16 fp32)
for p in 0 1 2 3; do build "${precisions[$p]}" -march=native -DPRECISION=$p; done
CC=clang build bf16 -march=native -DPRECISION=2
make -s MPI=1 train_gpt_fp16
mpi 2 ./train_gpt_fp16 "${run[@]}" -o "$out/made"
rm train_gpt_fp16 && make -s train_gpt_fp16
gcc "${flags[@]}" train_gpt_fp8.c -o "$out/alone" -lm
bits() { # label, precision, processes, options
  local label=$1 precision=$2 numbers=$3 && shift 3
  rm -rf "$out"/of-*
  mpi 1 "$out/$precision" "${run[@]}" "$@" -o "$out/of-1"
  for n in $numbers; do
    mpi "$n" "$out/$precision" "${run[@]}" "$@" -o "$out/of-$n" || fail "$label: $(cat "$out/said")"
    same "of-$n" of-1 || fail "$label: $n processes"
  done
  echo "ok   $label: 1 $numbers processes make the same bits"
}
bits fp16 fp16 "2 3"
bits bf16 bf16 "2 3" --grad-comm bf16
bits fp32 fp32 "2 4" --fp8-moments
bits "blocks of weights" fp8 "2 3" --recipe x:rowwise+w:deepseek+dy:mx --sqnr-every 2 \
  --scales-every 1 --bf16 0.fc.dgrad
bits "stochastic rounding, Hadamard" fp8 2 --recipe mx+hadamard+stochastic --recompute
bits "E2M1, two numbers a value, from a file" fp8 3 --recipe x:nvfp4+w:split \
  -e "$out/made/model_$last.bin"
bits "odd sizes, own amax, FP8 head" fp8 "3 4" --layers 3 --channels 72 --heads 3 --fp8-moments \
  --recipe current --fp8-head
bits "gradients in FP8" fp8 "2 4" --grad-comm fp8
cp -r "$out/of-1" "$out/gradients"
bits "plain FP8" fp8 "2 3 4"
! cmp -s "$out/gradients/model_$last.bin" "$out/of-1/model_$last.bin" || fail "--grad-comm: nothing"
"$out/alone" "${run[@]}" -o "$out/alone-run" > "$out/said"
same alone-run of-1
echo "ok   without MPI, plain C: the same bits"
OMP_NUM_THREADS=2 mpi 2 "$out/fp8" "${run[@]}" -o "$out/threads"
same threads of-1
echo "ok   two processes of two threads"
for n in "4 1" "4 3" "1 4"; do
  cp -r "$out/of-${n% *}" "$out/again-$n" && rm "$out/again-$n"/*"$last"*
  mpi "${n#* }" "$out/fp8" -y -o "$out/again-$n"
  same "again-$n" of-1
  "$out/alone" -y -o "$out/again-$n" --eval | grep '^validation' > "$out/loss"
  mpi 3 "$out/fp8" -y -o "$out/again-$n" --eval
  grep -q "$(cat "$out/loss")" "$out/said" || fail "--eval: $(cat "$out/loss" "$out/said")"
done
echo "ok   begun by 4, ended by 1 and by 3; begun by 1, ended by 4; --eval by 3"
if ! dev/ci/two_hosts.sh mpirun -np 4 "$out/fp8" "${run[@]}" -o "$out/host" > "$out/said" 2>&1; then
  grep -q '^skip' "$out/said" || fail "two hosts: $(cat "$out/said")"
  grep '^skip' "$out/said"
else
  same host of-1
  echo "ok   four processes on two hosts"
fi
