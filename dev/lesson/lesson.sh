#!/usr/bin/env bash
# The lesson: FP8 training in six steps. dev/lesson/README.md is the page to read beside it.
#   dev/lesson/lesson.sh [STEP] [DIRECTORY]      `make lesson` builds what it needs and runs it all
# STEP: all (the default), no-scale, scale, spike, formats, cost or table; also seeds, which makes
# the rows of dev/lesson/read.tsv again and is no part of `all`. DIRECTORY [log/lesson] keeps the
# runs, so that what is finished is not trained again. DIRECTORY/lesson.html has all pictures.
set -eu
cd "$(dirname "$0")/../.."
export LC_ALL=C.UTF-8
. dev/lesson/rows.sh
bad() {
  echo "dev/lesson/lesson.sh: $*" >&2
  exit 2
}
steps="no-scale scale spike formats cost table"
step=${1:-all} out=${2:-log/lesson}
[ $# -le 2 ] || bad "expected a step and a directory, found $# arguments"
case " all seeds $steps " in
*" $step "*) ;;
*) bad "step: expected all, seeds or one of: $steps; found '$step'" ;;
esac
programs="train_gpt_fp8 train_gpt_bf16 build/lesson/picture build/lesson/head build/lab/inject"
for binary in $programs; do
  [ -x "$binary" ] || bad "$binary: expected a program, found none; call: make lesson"
done
[ -e data/tales.d/val.txt ] || bad "data/tales.d/val.txt: found no file; call: make"
mkdir -p "$out" 2> /dev/null || bad "$out: cannot make this directory"
common="-e d2 -x 300 -v 25 -s 0"

# ---- what a step does
title() { # STEP, text: begins a step
  now=$1
  : > "$out/$now.html"
  printf '\n== %s: %s\n' "$1" "$2"
  html "<h2>$2</h2>"
}
html() { printf '%s\n' "$*" >> "$out/$now.html"; }
escaped() { sed 's/&/\&amp;/g; s/</\&lt;/g'; }
say() { # a paragraph, of standard input
  local text
  text=$(tr '\n' ' ')
  printf '\n%s\n' "$text" | fold -s -w 80
  html "<p>$(escaped <<< "$text")</p>"
}
command_shown() {
  printf '\n$ %s\n' "$*"
  html "<pre class=\"command\">$(escaped <<< "$*")</pre>"
}
# NAME, command..: trains into $out/NAME, unless that is there. What is unfinished begins again.
run() {
  local name=$1 begin=$SECONDS done=0
  shift
  if compgen -G "$out/$name/DONE_*" > /dev/null; then done=1; fi
  if [ $done = 1 ] && [ "$now" = table ]; then return; fi
  command_shown "$*"
  if [ $done = 1 ]; then
    echo "  (is in $out/$name)"
    return
  fi
  [ ! -e "$out/$name" ] || bad "$out/$name: expected a finished run, found none; remove it"
  rm -rf "$out/unfinished"
  "$@" -o "$out/unfinished" > "$out/$name.out" 2>&1 ||
    bad "the run failed: $(tail -1 "$out/$name.out")"
  printf '%s\n' "$*" > "$out/unfinished/command"
  mv "$out/unfinished" "$out/$name"
  echo "  ($((SECONDS - begin)) s)"
}
# NAME, command..: a command whose output stays in $out/NAME
keep() {
  local name=$1 begin=$SECONDS
  shift
  command_shown "$*"
  [ ! -s "$out/$name" ] || return 0
  "$@" > "$out/part" 2> "$out/error" || bad "$* failed: $(tail -1 "$out/error")"
  mv "$out/part" "$out/$name"
  echo "  ($((SECONDS - begin)) s)"
}
picture() { # NAME of a table
  echo
  build/lesson/picture "$out/$1.tsv" "$out/$1.svg"
  html "$(sed '/^<svg/s/^/<p>/; /^<\/svg>/s/$/<\/p>/' "$out/$1.svg")"
}
table() { # columns of standard input, separated by tabs
  local text
  text=$(aligned)
  printf '\n%s\n' "$text"
  html "<pre>$(escaped <<< "$text")</pre>"
}
header() { printf '# %s\t%s\n' picture "$1" title "$2" x "$3" y "$4"; }
# Validation losses of runs beside each other: NAME=what stands in the legend
curves() {
  header lines "$1" "training step" "validation loss, nats a byte"
  shift
  curves_of "$out" "$@"
}
loss() { printf '%.4f' "$(val_loss "$out/$1/log.tsv")"; }
row() { value "$out/rows.tsv" "$1" "$2"; } # RUN, COLUMN
train_all() { # RUN..: and their rows
  local name
  for name in "$@"; do train "$name"; done
  rows_of "$out" > "$out/rows.tsv"
}

# ---- the steps
train() { # RUN: with its options
  # shellcheck disable=SC2086 # options are words
  case $1 in
  bf16) run bf16 ./train_gpt_bf16 $common ;;
  fp8) run fp8 ./train_gpt_fp8 $common ;;
  no-scale) run no-scale ./train_gpt_fp8 $common --recipe none --loss-scale off ;;
  loss-scale) run loss-scale ./train_gpt_fp8 $common --recipe none ;;
  range-e4m3) run range-e4m3 ./train_gpt_fp8 $common --recipe none --loss-scale 64 ;;
  range-e5m2) run range-e5m2 ./train_gpt_fp8 $common --recipe scale=1 --loss-scale 64 ;;
  x-e5m2) run x-e5m2 ./train_gpt_fp8 $common --recipe x:e5m2 ;;
  w-e5m2) run w-e5m2 ./train_gpt_fp8 $common --recipe w:e5m2 ;;
  *) run "$1" ./train_gpt_fp8 $common --recipe "$1" ;;
  esac
}
step_no-scale() {
  title no-scale "FP8 with no scale does not train"
  train_all bf16 no-scale loss-scale
  curves "FP8 without a scale" bf16=bf16 "loss-scale=fp8 --recipe none" \
    "no-scale=fp8 --recipe none --loss-scale off" > "$out/no-scale-loss.tsv"
  picture no-scale-loss
  {
    header bars "No scale: what underflows to zero in step 300" "block and matrix" \
      "share of the values that underflow, %"
    shares_of "$out/no-scale/scales.tsv"
  } > "$out/no-scale-underflow.tsv"
  picture no-scale-underflow
  say << EOF
FP8 without any scale ends at $(loss no-scale) nats a byte, BF16 at $(loss bf16). The bars say why:
$(row no-scale flushed_dy)% of dy, the gradients, underflow to zero at attproj and fcproj. The
largest gradient is $(row no-scale amax_dy), and E4M3 rounds everything up to 2^-10 = 0.000977 to
zero. So no gradient passes these layers: qkv and fc get only zeros, which have no bar. Weights and
activations keep most of their values: at most $(row no-scale flushed_w)% and
$(row no-scale flushed_x)% underflow. With the loss scale, which is the default where gradients have
a constant scale, the same recipe ends at $(loss loss-scale). A loss scale is one scale for all
gradients.
EOF
}
step_scale() {
  title scale "One scale for each tensor"
  train_all bf16 no-scale fp8 current
  curves "One scale for each tensor" bf16=bf16 "fp8=$with_history" "current=$with_own_amax" \
    "no-scale=fp8 --recipe none --loss-scale off" > "$out/scale-loss.tsv"
  picture scale-loss
  {
    header lines "Four of the scales" "training step" "scale"
    printf '# scale\tlog\n'
    scales_by_step "$out/fp8/scales.tsv"
  } > "$out/scale-scales.tsv"
  picture scale-scales
  say << EOF
The default recipe ends at $(loss fp8), own amax (--recipe current) at $(loss current), BF16 at
$(loss bf16). One seed cannot tell these three apart. The scales of the 24 operands go from
$(row fp8 scale_min) to $(row fp8 scale_max), so no single constant serves them all. At most
$(row fp8 flushed_x)% of any x, $(row fp8 flushed_w)% of any w and $(row fp8 flushed_dy)% of any dy
underflow.
EOF
}
inject() { # delayed | current
  local options="-e d2 -x 60 -t 128 -b 2 --recipe $1"
  # shellcheck disable=SC2086 # options are words
  keep "spike-$1.txt" build/lab/inject spike 40 1 fc.x $options
  if [ ! -e "$out/spike-$1-broken.tsv" ]; then
    cp build/lab/clean.tsv "$out/spike-$1-clean.tsv"
    cp build/lab/broken.tsv "$out/spike-$1-broken.tsv"
  fi
}
step_spike() {
  title spike "A spike, and what a history makes of it"
  inject delayed
  inject current
  {
    header lines "A channel of 1.fc.x grows 1000 times in step 40" "training step" \
      "loss, broken less unbroken, nats a byte"
    spike_losses "$out"
  } > "$out/spike-loss.tsv"
  picture spike-loss
  {
    header lines "The scale of 1.fc.x around the spike" "training step" "scale"
    printf '# scale\tlog\n'
    spike_scales "$out"
  } > "$out/spike-scale.tsv"
  picture spike-scale
  spike_rows "$out" > "$out/spike.tsv"
  say << EOF
In step 40 the loss grows by $(value "$out/spike-loss.tsv" 40 "$with_history") under the history
of 16 steps, and by $(value "$out/spike-loss.tsv" 40 "$with_own_amax") under own amax. The history's
scale comes from earlier steps, so the spike saturates: $(value "$out/spike.tsv" delayed saturated)%
of the values. Own amax makes room for the spike and passes it on. The history pays later: it
remembers the spike for 16 steps, and up to $(value "$out/spike.tsv" delayed flushed)% of the values
underflow.
Own amax has its scale back in the next step.
EOF
}
step_formats() {
  title formats "E4M3 or E5M2, for x, w and dy"
  train_all fp8 e4m3 x-e5m2 w-e5m2 range-e4m3 range-e5m2
  {
    header bars "Signal to quantization noise, mean of the eight matrices" operand "SQNR, dB"
    sqnr_of "$out" "fp8=fp8 (x, w in E4M3, dy in E5M2)" "e4m3=fp8 --recipe e4m3" \
      "x-e5m2=fp8 --recipe x:e5m2" "w-e5m2=fp8 --recipe w:e5m2"
  } > "$out/formats-sqnr.tsv"
  picture formats-sqnr
  {
    header bars "Gradients without a scale of their own, loss scale 64" "block and matrix" \
      "share of dy that underflows, %"
    dy_shares_of "$out" "range-e4m3=E4M3 (--recipe none --loss-scale 64)" \
      "range-e5m2=E5M2 (--recipe scale=1 --loss-scale 64)"
  } > "$out/formats-range.tsv"
  picture formats-range
  say << EOF
With a scale for each tensor, mantissa bits decide: x has $(row fp8 sqnr_x) dB in E4M3 and
$(row x-e5m2 sqnr_x) in E5M2, w $(row fp8 sqnr_w) and $(row w-e5m2 sqnr_w), dy $(row e4m3 sqnr_dy)
and $(row fp8 sqnr_dy). One bit is 6 dB. Without a scale for dy, range decides: at a loss scale of
64 E4M3 ends at $(loss range-e4m3) and E5M2 at $(loss range-e5m2). The losses of the four runs above
($(loss fp8), $(loss e4m3), $(loss x-e5m2), $(loss w-e5m2)) are one seed and 300 steps, and show
nothing. Six seeds of 1,000 steps do ($findings-runs.tsv):
FP8 lies above BF16 by $(gap_text $findings-runs.tsv bf16 fp8), and with x in E5M2 by
$(gap_text $findings-runs.tsv bf16 "fp8 --recipe x:e5m2").
EOF
}
read_run() { # SEED: a model, and its loss in four ways of reading
  local model=$out/read-$1/model_00001500.bin
  run "read-$1" ./train_gpt_bf16 -e d1 -x 1500 -q 0 -v 300 -s 0 --seed "$1" --data-seed "$1"
  keep "read-$1-bf16" ./train_gpt_bf16 --eval -e "$model"
  keep "read-$1-fp8" ./train_gpt_fp8 --eval -e "$model"
  keep "read-$1-fp8-qkv" ./train_gpt_fp8 --eval -e "$model" --bf16 0.qkv.fprop
  keep "read-$1-fp8-fc" ./train_gpt_fp8 --eval -e "$model" --bf16 0.fc.fprop
}
read_loss() { awk -F '\t' -v arm="$1" '$1 == arm { printf "%.4f", $3; exit }' "$out/read-1.tsv"; }
step_cost() {
  local rows=dev/lesson/read.tsv qkv="fp8 --bf16 0.qkv.fprop" fc="fp8 --bf16 0.fc.fprop"
  title cost "Where FP8 still costs"
  read_run 1
  keep cost-head.tsv build/lesson/head "$out/read-1/model_00001500.bin" -j data/tales.d/val.txt
  picture cost-head
  reads_of "$out" 1 > "$out/read-1.tsv"
  say << EOF
Your BF16 model has $(read_loss bf16) nats a byte when it is read in BF16, $(read_loss fp8) in FP8,
$(read_loss "$qkv") with the first qkv product in BF16, and $(read_loss "$fc") with another product
in BF16, a placebo. That is one seed. From six seeds (dev/lesson/read.tsv): FP8 costs
$(gap_text $rows bf16 fp8), with the qkv product in BF16 $(gap_text $rows bf16 "$qkv"), with the
placebo $(gap_text $rows bf16 "$fc"). The picture shows the rounding noise in what a head looks at:
red where it looks more, blue where it looks less.
EOF
}
step_table() {
  title table "The same in one table"
  # shellcheck disable=SC2086 # names are words
  train_all $lesson_runs
  say <<< "Your runs, one seed each. So the losses near BF16's cannot be told apart."
  table_of "$out" | table
  say << EOF
Six seeds of 1,000 steps, from $findings-runs.tsv: the gap to BF16 with its 95% interval.
EOF
  findings_table | table
  if cmp -s "$out/rows.tsv" dev/lesson/rows.tsv; then
    say <<< "Your losses, shares and scales are those of dev/lesson/rows.tsv, to the last digit."
  else
    say <<< "Your rows differ from dev/lesson/rows.tsv: is this another version of the trainer?"
  fi
}
step_seeds() {
  local seed
  title seeds "Six seeds of the model that the step cost reads"
  for seed in 1 2 3 4 5 6; do read_run $seed; done
  reads_of "$out" 1 2 3 4 5 6 > "$out/read.tsv"
  table < "$out/read.tsv"
}

page() {
  local name
  cat << 'EOF'
<!DOCTYPE html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>FP8 training in ten minutes</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 780px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff }
pre { overflow-x: auto; background: #f3f3f3; padding: .5em; margin: .3em 0 }
.command { white-space: pre-wrap } svg { max-width: 100%; height: auto }
</style>
<h1>FP8 training in ten minutes: your run</h1>
<p>dev/lesson/README.md explains these pictures.</p>
EOF
  for name in $steps; do
    if [ -e "$out/$name.html" ]; then cat "$out/$name.html"; fi
  done
}

begin=$SECONDS
if [ "$step" = all ]; then
  for each in $steps; do "step_$each"; done
else
  "step_$step"
fi
rm -f "$out/error"
page > "$out/lesson.html"
printf '\n%s seconds. All pictures: %s/lesson.html\n' $((SECONDS - begin)) "$out"
