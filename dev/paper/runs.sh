#!/usr/bin/env bash
# The runs of the paper's tables at laptop size, and the tables.
#   dev/paper/runs.sh paper OUT   FP16 and FP8, three seeds, one data set a family (make paper)
#   dev/paper/runs.sh full OUT    every arm, six seeds, all data sets (make paper-full)
#   dev/paper/runs.sh short OUT   a few steps of each, for continuous integration
# Every run adds a row to OUT/rows.tsv. Rows that are there are not made again, so the same command
# continues what was stopped. As many runs go at a time as there are processors, a thread each.
set -eu
cd "$(dirname "$0")/../.."
fail() { echo "runs.sh: $1" >&2; exit 2; }
mode=${1:-} out=${2:-}
[ $# = 2 ] && [ -n "$out" ] || fail "expected paper, full or short, and a directory; found '$*'"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive rows=$out/rows.tsv
mkdir -p "$out" || fail "$out: cannot make this directory"

# The arms. Positive controls should fail: activations in E5M2 have a mantissa bit less; gradients in
# E4M3 with a scale of 1 have an exponent bit less; without any scale small gradients underflow.
arms="fp16;fp8"
seeds="1 2 3"
every_arm="fp32;fp16;bf16;fp8;bf16 --sum-order tiles;fp8 --recipe x:e5m2;fp16 --loss-scale off"
every_arm+=";fp8 --recipe dy:e4m3+dy:scale=1 --loss-scale off;fp8 --recipe none --loss-scale off"

# Data set, program, options.
glyphs=(glyphs cnn "--data data/glyphs.d --steps 1500")
tales=(tales lstm "--task lm --steps 1500")
numbers=(numbers lstm "--task numbers")
dates=(dates lstm "--task dates")
digits=(digits cnn "--data data/digits.d --steps 500 --channels 8")
gpt="-e d2 -t 64 -b 16 -x 1000 -v 250 -s 0"
sets=(glyphs tales numbers)
case $mode in
  paper) ;;
  full)
    arms=$every_arm seeds="1 2 3 4 5 6"
    sets+=(dates)
    if [ -e data/digits.d/train.bin ]; then sets+=(digits); fi
    gpt="-e d2 -t 64 -b 16 -x 3000 -v 500 -s 0"
    ;;
  short)
    seeds="1 2"
    glyphs[2]="--data data/glyphs.d --steps 40"
    tales[2]="--task lm --steps 20"
    numbers[2]="--task numbers --steps 20"
    gpt="-e d2 -t 64 -b 4 -x 20 -v 10 -s 0"
    ;;
  *) fail "expected paper, full or short, found '$mode'" ;;
esac

# One run, unless its row is there. $1: data set, program, options, arm and seed between bars.
run_one() {
  local data program options arm seed output status=0
  IFS='|' read -r data program options arm seed <<< "$1"
  grep -qF "$data	$arm	$seed	" "$rows" && return
  # shellcheck disable=SC2086 # options are words
  output=$("build/paper/${program}_${arm%% *}" $options ${arm#"${arm%% *}"} --seed "$seed") ||
    status=$?
  if [ $status != 0 ] && [ $status != 3 ]; then
    echo "runs.sh: $data, $arm, seed $seed: exit status $status" >&2
    return 255 # xargs starts no further run
  fi
  printf '%s\t%s\t%s\t%s\n' "$data" "$arm" "$seed" \
    "$(sed -n 's/^result\t//p' <<< "$output")" | tee -a "$rows"
}
export -f run_one

[ -e "$rows" ] || printf 'data\tarm\tseed\tloss\taccuracy\tseconds\n' > "$rows"
for name in "${sets[@]}"; do
  declare -n set=$name
  line="# $name	${set[1]} ${set[2]}"
  found=$(grep "^# $name	" "$rows" || true)
  [ -n "$found" ] || printf '%s\n' "$line" >> "$rows"
  [ -z "$found" ] || [ "$found" = "$line" ] ||
    fail "$rows: expected rows of '$line', found '$found'; use another directory"
done
for seed in $seeds; do
  for name in "${sets[@]}"; do
    declare -n set=$name
    while read -rd ';' arm; do
      printf '%s|%s|%s|%s|%s\0' "$name" "${set[1]}" "${set[2]}" "$arm" "$seed"
    done <<< "$arms;"
  done
done | xargs -0 -P "$(nproc)" -I{} bash -c 'run_one "$1"' run {}

# The transformer, with the arms that the trainer has, and quantization after training.
build/compare --arms "fp16,fp8" --seeds "$(wc -w <<< "$seeds")" --jobs "$(nproc)" \
  --out "$out/gpt" -- $gpt > "$out/gpt.txt"
model=$(printf '%s\n' "$out"/gpt/fp16-1/model_*.bin | tail -1)
build/lab/ptq "$model" -i data/tales.d/train.txt -j data/tales.d/val.txt > "$out/ptq.txt"
build/paper/tables "$out"
