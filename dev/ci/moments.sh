#!/usr/bin/env bash
# --fp8-moments: the definition's bytes; whole runs make the same bits with any compiler, any number
# of threads and across a resume; what a resume refuses; the size of a state.
set -eu
. "$(dirname "$0")/env.sh"
out=build/moments
rm -rf $out
mkdir -p $out
read -ra flags <<< "$(make -s flags) -fopenmp -Wall -Wextra -Werror"
make data/tales.d/train.txt
for precision in 0 3; do
  gcc "${flags[@]}" -march=native -DPRECISION=$precision dev/check/test_moments.c -o $out/test -lm
  $out/test
done

gcc "${flags[@]}" train_gpt_fp8.c -o $out/portable -lm
clang "${flags[@]}" -march=native train_gpt_fp8.c -o $out/native -lm
gcc "${flags[@]}" -march=native -DPRECISION=2 train_gpt_fp8.c -o $out/bf16 -lm
run=("${short[@]}" --keep 0 -n 3)
last=00000006
same() { # two directories
  cmp "$out/$1/model_$last.bin" "$out/$2/model_$last.bin"
  cmp "$out/$1/state_$last.bin" "$out/$2/state_$last.bin"
}
refused() { # words of the message, then a command
  local words=$1 status=0
  shift
  "$@" > $out/said 2>&1 || status=$?
  [ $status = 2 ] || fail "expected a refusal, found status $status: $*"
  grep -q -e "$words" $out/said || fail "expected '$words', found: $(tail -1 $out/said)"
}
OMP_NUM_THREADS=1 $out/portable "${run[@]}" -o $out/fp32 > $out/said
OMP_NUM_THREADS=1 $out/portable "${run[@]}" --fp8-moments -o $out/one > $out/said
OMP_NUM_THREADS=3 $out/native "${run[@]}" --fp8-moments -o $out/three > $out/said
same one three
cp -r $out/one $out/resumed
rm $out/resumed/*_$last*
OMP_NUM_THREADS=2 $out/native -y -o $out/resumed > $out/said
same one resumed
! cmp -s $out/one/model_$last.bin $out/fp32/model_$last.bin || fail "--fp8-moments changes nothing"
echo "ok   compilers, threads and a resume make the same bits"
refused fp8-moments $out/portable -y -o $out/fp32 --fp8-moments
$out/portable --eval -y -o $out/one > $out/said
for name in adamw_m adamw_v adamw_inv; do
  cp $out/one/state_$last.bin $out/whole
  at=$(grep -abo $name $out/whole | head -1 | cut -d: -f1)
  printf '\125' | dd of=$out/one/state_$last.bin bs=1 seek=$((at + 300)) conv=notrunc status=none
  refused damaged $out/portable -y -o $out/one
  cp $out/whole $out/one/state_$last.bin
done
echo "ok   other moments, damaged moments and damaged scales are refused"
$out/bf16 "${run[@]}" -x 2 --fp8-moments -o $out/bf16-run > $out/said
echo "     state of $(stat -c %s $out/one/state_$last.bin) bytes;" \
  "with fp32 $(stat -c %s $out/fp32/state_$last.bin)"
rm -rf $out/one $out/three $out/resumed $out/bf16-run
