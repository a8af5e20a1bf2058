#!/usr/bin/env bash
# The runs of the paper's tables at laptop size, and the tables.
#   dev/paper/runs.sh paper OUT   FP16 and FP8, three seeds, one data set a family (make paper)
#   dev/paper/runs.sh full OUT    every arm, five seeds, all data sets (make paper-full)
#   dev/paper/runs.sh short OUT   a few steps of each, for continuous integration
# OUT is taken from the repository's root. Every run adds a row to OUT/rows.tsv. A row that is there
# is not made again, so the same command continues what was stopped; after a change of the programs
# take another OUT. As many runs go at a time as there are processors, a thread each.
set -eu
cd "$(dirname "$0")/../.."
fail() { echo "runs.sh: $1" >&2; exit 2; }
mode=${1:-} out=${2:-}
[ $# = 2 ] || fail "expected paper, full or short, and a directory; found '$*'"
mkdir -p "$out" || fail "'$out': cannot make this directory"
jobs=$(nproc) # which OMP_NUM_THREADS limits
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive rows=$out/rows.tsv

# Positive controls should fail. x:e5m2: activations have one mantissa bit less. dy:e4m3+dy:scale=1:
# gradients have one exponent bit less and no scale. scale=1: FP8's formats without any scale. none:
# the same with gradients in E4M3. fp16 without a loss scale: small gradients underflow. Null arms
# are fp32 and another order of sums.
arms="fp16;fp8"
full_arms="fp32;fp16;bf16;fp8;bf16 --sum-order tiles;fp8 --recipe x:e5m2;fp16 --loss-scale off"
full_arms+=";fp8 --recipe dy:e4m3+dy:scale=1 --loss-scale off;fp8 --recipe none --loss-scale off"
full_arms+=";fp8 --recipe scale=1 --loss-scale off"
head_arms=";fp8 --fp8-head 1;fp8 --fp8-head 1 --recipe dy:e4m3" # of the LSTMs only
seeds="1 2 3"
sets="glyphs tales numbers"
play=data/tinyshakespeare
declare -A call=(
  [glyphs]="cnn --data data/glyphs.d --steps 1500"
  [digits]="cnn --data data/digits.d --steps 500 --channels 8"
  [tales]="lstm --task lm --steps 3000"
  [shakespeare]="lstm --task lm --steps 1500 --train $play/tinyshakespeare_train_000000.bin"
  [numbers]="lstm --task numbers --steps 1500 --lr 3e-3"
  [dates]="lstm --task dates --steps 600"
)
call[shakespeare]+=" --val $play/tinyshakespeare_val_000000.bin"
gpt_arms="fp16,fp8"
gpt=(-e d2 -t 64 -b 16 -x 1000 -v 250 -s 0)
test_rows=(-m 1000) # of ptq
case $mode in
  paper) ;;
  full)
    arms=$full_arms seeds="1 2 3 4 5" sets+=" dates" gpt_arms=$(tr ';' ',' <<< "$full_arms")
    if [ -e data/digits.d/train.bin ]; then sets+=" digits"
    else echo "runs.sh: left out: data/digits.d (python3 data/digits.py makes it)" >&2; fi
    if [ -d $play ]; then sets+=" shakespeare"
    else echo "runs.sh: left out: $play (python3 data/tinyshakespeare.py makes it)" >&2; fi
    ;;
  short)
    seeds="1 2"
    for set in $sets; do call[$set]+=" --steps 20"; done # the last --steps counts
    gpt=(-e d2 -t 64 -b 4 -x 20 -v 10 -s 0) test_rows=(-m 40)
    ;;
  *) fail "expected paper, full or short, found '$mode'" ;;
esac

# One run, unless its row is there. $1: data set, program with options, arm and seed between bars.
run_one() {
  local data command arm seed output status=0
  IFS='|' read -r data command arm seed <<< "$1"
  if grep -q "^$data	$arm	$seed	" "$rows"; then return; fi
  # shellcheck disable=SC2086 # options are words
  output=$("build/paper/${command%% *}_${arm%% *}" ${command#* } ${arm#"${arm%% *}"} \
    --seed "$seed") || status=$?
  if [ $status != 0 ] && [ $status != 3 ]; then
    echo "runs.sh: $data, $arm, seed $seed: exit status $status" >&2
    return 255 # xargs starts no further run
  fi
  printf '%s\t%s\t%s\t%s\n' "$data" "$arm" "$seed" \
    "$(sed -n 's/^result\t//p' <<< "$output")" | tee -a "$rows"
}
export -f run_one

for program in build/paper/{{cnn,lstm}_{fp8,fp16,bf16,fp32},tables} build/{compare,lab/ptq}; do
  [ -x "$program" ] || fail "expected $program, found none; \`make paper\` builds it"
done
exec 9> "$out/lock"
flock -n 9 || fail "$out: another runs.sh is at work there"
if [ -s "$rows" ] && [ -n "$(tail -c 1 "$rows")" ]; then sed -i '$d' "$rows"; fi # half a row
if [ ! -e "$rows" ]; then printf 'data\tarm\tseed\tloss\taccuracy\tseconds\n' > "$rows"; fi
for set in $sets; do
  line="# $set	${call[$set]}"
  found=$(grep "^# $set	" "$rows" || true)
  if [ -z "$found" ]; then printf '%s\n' "$line" >> "$rows"; fi
  if [ -n "$found" ] && [ "$found" != "$line" ]; then
    fail "$rows: expected the runs '$line', found '$found'; use another directory"
  fi
done
for seed in $seeds; do
  for set in $sets; do
    case $mode-${call[$set]} in full-lstm*) all=$arms$head_arms ;; *) all=$arms ;; esac
    while read -rd ';' arm; do
      printf '%s|%s|%s|%s\0' "$set" "${call[$set]}" "$arm" "$seed"
    done <<< "$all;"
  done
done | xargs -0 -P "$jobs" -I{} bash -c "run_one '{}'"

# The transformer. Status 1: a run diverged, which its row says.
build/compare --arms "$gpt_arms" --seeds "$(wc -w <<< "$seeds")" --jobs "$jobs" \
  --out "$out/gpt" -- "${gpt[@]}" > "$out/gpt.txt" || [ $? = 1 ]
# Quantization after training: of a model of 16 bits, with outliers made on purpose, and of a model
# that was trained so that it grows some.
ptq() { # output, model, options
  build/lab/ptq "$2" -i data/tales.d/train.txt -j data/tales.d/val.txt "${@:3}" > "$out/$1"
}
model() { printf '%s\n' "$out/$1"/model_*.bin | tail -1; }
ptq ptq.txt "$(model gpt/fp16-1)" "${test_rows[@]}"
ptq outliers.txt "$(model gpt/fp16-1)" -f sweep "${test_rows[@]}"
if [ "$mode" = full ] && [ ! -e "$out/trained/DONE_00006000" ]; then
  rm -rf "$out/trained" # minutes; not worth a resume
  ./train_gpt_bf16 -e d2 -t 64 -b 16 -x 6000 -l 0.008 -c 0 -v 1000 -s 0 -o "$out/trained" \
    > "$out/trained.log" || fail "no trained outliers: see $out/trained.log"
fi
if [ "$mode" = full ]; then ptq trained.txt "$(model trained)" "${test_rows[@]}"; fi
build/paper/tables "$out"
