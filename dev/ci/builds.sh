#!/usr/bin/env bash
# Every compiler builds the C sources without a warning: gcc, clang and aarch64's gcc, in four
# precisions, with every instruction set, with OpenMP and without. A build of plain C with one
# thread trains.
set -eu
. "$(dirname "$0")/env.sh"
flags=(-O1 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror)
compilers=(
  "gcc -fopenmp -march=native"
  "gcc -fopenmp -march=x86-64-v4"
  "gcc -fopenmp -march=x86-64-v3"
  "gcc -fopenmp"
  "gcc -Wno-unknown-pragmas"
  "clang -fopenmp -march=native"
  "clang -fopenmp -march=x86-64-v3"
  "clang -Wno-unknown-pragmas"
  "aarch64-linux-gnu-gcc -fopenmp"
)
for p in 0 1 2 3; do
  for words in "${compilers[@]}"; do
    read -ra compiler <<< "$words"
    "${compiler[@]}" "${flags[@]}" -DPRECISION=$p -c train_gpt_fp8.c -o /dev/null ||
      fail "$words, precision $p"
  done
  for file in test_*.c; do
    clang "${flags[@]}" -fopenmp -march=native -DPRECISION=$p -c "$file" -o /dev/null
  done
done
for compiler in gcc clang; do
  $compiler "${flags[@]}" data/tales.c -o /dev/null
  $compiler "${flags[@]}" data/glyphs.c -o /dev/null
  $compiler "${flags[@]}" -fopenmp -march=native dev/bench/products.c -o /dev/null -lm
  $compiler "${flags[@]}" -fopenmp -march=native -shared -fPIC \
    -DLIBRARY='"../../train_gpt_fp8.c"' dev/bench/paired.c -o /dev/null -lm
  $compiler "${flags[@]}" -fopenmp dev/bench/paired.c -o /dev/null -ldl
done
make data/tales.d/train.txt
make NO_OMP=1 PORTABLE=1 train_gpt_fp8
rm -rf build/run-noomp
./train_gpt_fp8 "${short[@]}" -x 2 -n 0 -o build/run-noomp
make train_gpt_fp8
