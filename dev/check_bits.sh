#!/usr/bin/env bash
# shellcheck disable=SC2086 # flags are words
# The same bits from every build: trains a tiny model in each precision with every compiler, instruction set and thread
# count at hand, and compares the checkpoint (weights, moments, scales, histories), every log column but the times, and
# scales.tsv. Then a run that is stopped and resumed against one that is not.
#   dev/check_bits.sh          aarch64 is included where aarch64-linux-gnu-gcc and qemu-aarch64 are installed
set -u
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
numerics="$(make -s flags) -w"
for i in $(seq 400); do echo "$i little fish swam past $((i * 7 % 13)) boats, and $((i % 5)) of them sang."; done > "$work/text.txt"
arguments=(-i "$work/text.txt" --layers 2 --channels 96 --heads 3 -t 72 -b 3 -x 6 -d 432 -v 3 -m 2 -s 0 -n 3 -u 2 -l 3e-3)

check() { # name, directory, reference directory
  local why=""
  for f in model_00000006.bin state_00000006.bin; do cmp -s "$2/$f" "$3/$f" || why="$f differs"; done
  diff -q <(grep -v '^#' "$2/log.tsv" | cut -f1-7) <(grep -v '^#' "$3/log.tsv" | cut -f1-7) > /dev/null || why="log.tsv differs"
  [ ! -f "$3/scales.tsv" ] || cmp -s "$2/scales.tsv" "$3/scales.tsv" || why="scales.tsv differs"
  if [ -z "$why" ]; then passed=$((passed + 1)); echo "ok   $1"; else failed=$((failed + 1)); echo "FAIL $1: $why"; fi
}
runs_here() { echo 'int main(void) { return 0; }' | gcc -x c -march="$1" - -o "$work/probe" 2> /dev/null; grep -qw "$2" /proc/cpuinfo; }

given=("${arguments[@]}")
for case in "0 pairs" "1 pairs" "2 pairs" "3 pairs" "0 tiles" "0 pairs --recipe x:rowwise+w:deepseek+dy:mx" \
  "0 pairs --recipe hybrid-qkv" "0 pairs --recipe deepseek --bf16 0.qkv.fprop"; do
  read -r p order more <<< "$case" # precision, order of the products' sums, other options
  name=$(echo fp8 fp16 bf16 fp32 | cut -d' ' -f$((p + 1)))
  read -ra words <<< "$more"
  arguments=("${given[@]}" --sum-order "$order" "${words[@]}")
  [ "$order" = pairs ] || name=$name-$order
  more=${more//--/}
  [ -z "$more" ] || name=$name-${more// /-}
  reference="$work/$name-portable-1"
  build() { # label, compiler and flags, threads, runner
    local label=$1 compiler=$2 threads=$3 runner=${4:-} binary="$work/$p-$1"
    if [ ! -x "$binary" ] && ! $compiler $numerics -fopenmp -DPRECISION=$p train_gpt_fp8.c -o "$binary" -lm 2> "$work/err"; then
      failed=$((failed + 1)); echo "FAIL $name $label: does not compile: $(head -1 "$work/err")"; return
    fi
    for t in $threads; do
      local out="$work/$name-$label-$t"
      if ! OMP_NUM_THREADS=$t $runner "$binary" "${arguments[@]}" -o "$out" > "$work/log" 2>&1; then
        failed=$((failed + 1)); echo "FAIL $name $label, $t threads: $(tail -1 "$work/log")"; continue
      fi
      [ "$out" = "$reference" ] || check "$name: $label with $t threads makes the bits of portable C with 1" "$out" "$reference"
    done
  }
  build portable "gcc" "1 3"
  if [ "$(uname -m)" = x86_64 ]; then
    runs_here x86-64-v3 avx2 && build avx2 "gcc -march=x86-64-v3" "2"
    runs_here x86-64-v4 avx512bw && build avx512 "gcc -march=x86-64-v4" "2"
  fi
  build native "gcc -march=native -mprefer-vector-width=512" "1 2 3"
  command -v clang > /dev/null && build clang "clang -march=native" "2"
  if command -v aarch64-linux-gnu-gcc > /dev/null && command -v qemu-aarch64 > /dev/null; then
    build aarch64 "aarch64-linux-gnu-gcc -static" "2" qemu-aarch64
  else
    echo "skip: $name on aarch64 (no aarch64-linux-gnu-gcc or qemu-aarch64)"
  fi
  # stop after step 3, where a checkpoint is, and resume with another number of threads
  out="$work/$name-resumed"
  cp -r "$work/$name-native-2" "$out" && rm "$out"/*00000006*
  if OMP_NUM_THREADS=3 "$work/$p-native" -y -o "$out" > "$work/log" 2>&1; then
    check "$name: resumed at step 3 makes the bits of the straight run" "$out" "$reference"
  else
    failed=$((failed + 1)); echo "FAIL $name resumed: $(tail -1 "$work/log")"
  fi
done

# All products in bf16: the FP8 build is the BF16 build, through every scratch and kept tensor that it has instead.
out="$work/fp8-as-bf16"
if OMP_NUM_THREADS=2 "$work/0-native" "${given[@]}" --bf16 qkv+attproj+fc.fprop+fc.dgrad+fc.wgrad+0.fcproj+last -o "$out" > "$work/log" 2>&1 &&
  cmp -s "$out/model_00000006.bin" "$work/bf16-native-2/model_00000006.bin"; then
  passed=$((passed + 1)); echo "ok   fp8 with every product in bf16 makes the weights of the BF16 build"
else
  failed=$((failed + 1)); echo "FAIL fp8 with every product in bf16: $(tail -1 "$work/log")"
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
