#!/usr/bin/env bash
# The FP8 build's tests pass when clang builds them.
set -eu
. "$(dirname "$0")/env.sh"
make train_gpt_fp8 data/tales.d/train.txt
read -ra flags <<< "$(make -s flags)"
clang -O3 "${flags[@]}" -march=native -fopenmp -w -DPRECISION=0 test_gpt.c -o build/test_clang -lm
build/test_clang
