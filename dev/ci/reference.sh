#!/usr/bin/env bash
# `make REFERENCE=1` computes the products by their short definition. It must train the same weights
# and state, bit for bit, as the fast products do.
set -eu
. "$(dirname "$0")/env.sh"
grep -q '\bREFERENCE\b' train_gpt_fp8.c || fail "train_gpt_fp8.c does not read REFERENCE"
builds="fp8 fp16 bf16 fp32"
run_all() { # name of the runs
  local name
  for name in $builds; do
    rm -rf "build/run-$1-$name"
    "./train_gpt_$name" "${short[@]}" -o "build/run-$1-$name"
  done
  rm -rf "build/run-$1-blocks"
  ./train_gpt_fp8 "${short[@]}" --recipe deepseek -o "build/run-$1-blocks"
}
make all
run_all fast
make REFERENCE=1 all
run_all reference
make all
for name in $builds blocks; do
  for file in model_00000006.bin state_00000006.bin; do
    cmp "build/run-fast-$name/$file" "build/run-reference-$name/$file"
  done
  echo "ok   $name: the definition makes the same bits"
done
