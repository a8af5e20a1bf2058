#!/usr/bin/env bash
# dev/paper: both compilers build it; gradients are those of finite differences, and a planted fault
# is seen; the same bits for any thread count; the networks are PyTorch's; short runs of everything
# give the tables, and go on where they were stopped; the committed tables are those of their rows.
set -eu
. "$(dirname "$0")/env.sh"
make all build/compare build/lab/ptq build/paper/tables data/glyphs.d/train.bin
for p in fp8 fp16 bf16 fp32; do make build/paper/{cnn,lstm}_$p; done
flags=$(make -s flags)
for file in cnn lstm tables; do # shellcheck disable=SC2086 # flags are words
  clang $flags -Wall -Wextra -Werror -fopenmp -march=native -fsyntax-only dev/paper/$file.c
done

for call in "cnn --batch 16" "lstm --task lm --time 16 --batch 4" "lstm --task dates --batch 4"; do
  # shellcheck disable=SC2086 # options are words
  build/paper/"${call%% *}"_fp32 ${call#* } --check 1 | tail -1 | grep ', 0 failed'
done
# A gradient without the batch's mean, and one without the cell's own slope.
sed 's/ - dbias\[k\] \/ (float)rows//' dev/paper/cnn.c > dev/paper/planted_cnn.c
sed 's/dc\[j\] + d \* o\[j\] \* (1 - tanh_c \* tanh_c)/dc[j] + d * o[j]/' \
  dev/paper/lstm.c > dev/paper/planted_lstm.c
trap 'rm -f dev/paper/planted_*.c' EXIT
for name in cnn lstm; do
  if cmp -s dev/paper/{planted_,}$name.c; then fail "$name.c has no place for the fault"; fi
  # shellcheck disable=SC2086 # flags are words
  cc $flags -fopenmp -march=native -DPRECISION=3 dev/paper/planted_$name.c -o build/planted -lm
  build/planted --check 1 --batch 8 | grep '^FAIL' || fail "$name: a planted fault passes"
done

for call in "cnn_fp8 --steps 12" "lstm_fp8 --task numbers --steps 6 --test 50"; do
  for threads in 1 3; do # shellcheck disable=SC2086 # options are words
    OMP_NUM_THREADS=$threads build/paper/$call | grep '^result' | cut -f2,3 > build/bits$threads
  done
  cmp build/bits1 build/bits3 || fail "$call: other bits with three threads"
done
"$python" dev/check/paper_check.py

rm -rf build/paper-short
dev/paper/runs.sh short build/paper-short > build/paper-tables
grep -c '^| ours' build/paper-tables
sed -i '$d' build/paper-short/rows.tsv # as if stopped before the last row
dev/paper/runs.sh short build/paper-short > build/paper-again
cmp <(sed -n '/^## Table 2/,$p' build/paper-tables) <(sed -n '/^## Table 2/,$p' build/paper-again)

build/paper/tables dev/paper/results | cmp - dev/paper/TABLES.md
