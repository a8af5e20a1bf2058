#!/usr/bin/env bash
# The laboratory (dev/lab): every program builds; the accumulator has mmaemu's bits; attention's
# figures are NumPy's, and its losses the trainers'; injected faults stop a run or are refused; ptq
# runs.
set -eu
. "$(dirname "$0")/env.sh"
[ -e build/run-bf16/model_00000006.bin ] || dev/ci/short_run.sh bf16
make all
for file in dev/lab/*.c; do make "build/lab/$(basename "$file" .c)"; done

build/lab/accumulator 4
"$python" dev/check/check_accumulator.py

model=build/run-bf16/model_00000006.bin
data=(-j data/tales.d/train.txt -t 64)
eval=(--eval -i data/tales.d/train.txt -e "$model" -b 8 -m 1)
"$python" dev/check/check_attention.py
build/lab/attention $model "${data[@]}" -m 8 | tee build/attention
loss=$(./train_gpt_bf16 "${eval[@]}" "${data[@]}" | grep -o 'loss [0-9.]*$')
grep "^$loss;" build/attention || fail "attention: the bf16 trainer has $loss" # to the last digit
loss=$(./train_gpt_fp8 "${eval[@]}" "${data[@]}" --recipe current \
  --bf16 attproj+fc+fcproj | grep -o '[0-9.]*$')
grep "qkv $loss (" build/attention || fail "attention: the fp8 trainer has $loss with FP8 in qkv"

run=(-e d2 -x 12 -t 64 -b 2)
build/lab/inject nan 8 1 fc.w "${run[@]}" | grep 'stopped in step 8'
build/lab/inject stale 8 0 fc.dy "${run[@]}"
status=0
build/lab/inject stale 8 0 fc.dy "${run[@]}" --recipe mx || status=$?
[ $status = 2 ] || fail "inject: a stale scale under mx: expected status 2, found $status"

build/lab/ptq $model -i data/tales.d/train.txt -j data/tales.d/val.txt -t 64 -m 8
