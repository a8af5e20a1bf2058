#!/usr/bin/env bash
# A recipe that closes the gap to BF16: the runs of closing.md, paired by seed.
#
#   dev/findings/closing.sh screen       68 runs of a minute of one core: candidates, placebo
#   dev/findings/closing.sh operands     36 runs: which operand, which product makes the gap
#   dev/findings/closing.sh novels       72 runs: the two recipes that the screen chose, null arms
#   dev/findings/closing.sh shakespeare  72 runs: the same on tiny Shakespeare
#   dev/findings/closing.sh kjv          40 runs: the same on the King James Bible, eight seeds
#   dev/findings/closing.sh kjv-operands 40 runs: which part of the first recipe does it there
#   dev/findings/closing.sh epoch        12 runs of six minutes: one epoch of the novels, small rate
#   dev/findings/closing.sh cheaper      30 runs: two without blocks, on tiny Shakespeare, the epoch
#   dev/findings/closing.sh cheaper-novels   24 runs: the same two on the novels' short run
#   dev/findings/closing.sh gradients    build/lab/gradients at five steps of three BF16 runs
#
# BF16, FP8, mx and the null arms of the first two are the rows of tales-short-d2-low-lr; BF16 and
# FP8 of the epoch those of novels-d2-low-lr. novels-10mb.txt, novels-val.txt, tinyshakespeare.txt
# and kjv.txt lie in this repository's root.
# A stopped comparison goes on with the same command. Its tables lie in build/closing-NAME or
# build/closing-NAME-runs.
set -eu
cd "$(dirname "$0")/../.."
add() { # arms of the FP8 build, each with the options that follow fp8
  for options; do arms="${arms:+$arms,}fp8 $options"; done
}
train() { # name, reference, then options of build/compare
  name=$1 reference=$2
  shift 2
  OMP_NUM_THREADS=${JOBS:-2} build/compare --jobs "${JOBS:-2}" --out "build/closing-$name-runs" \
    --arms "$arms" --reference "$reference" "$@"
}
tales() { # name, options of its first arm: the short run at a small rate
  make data/tales.d/train.txt
  train "$1" "fp8 $2" --seeds 4 -- -i data/tales.d/train.txt -j data/tales.d/val.txt \
    -e d2 -b 4 -t 256 -m 100 -x 1500 -v 250 -q 0 -l 5e-4 -s 0
  rows=dev/findings/tales-short-d2-low-lr-runs.tsv,build/closing-$1-runs/runs.tsv
  build/compare --out "build/closing-$1" --reference bf16 --pool "$rows" --null \
    --arms "bf16,fp8,fp8 --recipe mx,fp32,bf16 --sum-order tiles,$arms"
}
make all build/compare
arms=""
short=(-e d2 -b 8 -t 256 -m 50 -x 1000 -v 250 -s 0) # at the default rate
epoch=(-i novels-10mb.txt -j novels-val.txt -e d2 -b 8 -t 256 -m 50 -x 4883 -v 500 -n 500 -l 6e-4)
r1="--recipe deepseek --bf16 0.qkv.fprop" r2="--recipe dy:e4m3 --bf16 qkv.fprop"
case ${1:-} in
  screen)
    for recipe in x:mx w:mx dy:mx rowwise x:rowwise deepseek dy:e4m3 dy:stochastic \
      dy:mx+dy:stochastic mx+hadamard margin=1 margin=3; do
      add "--recipe $recipe"
    done
    for operand in x w; do add "--recipe $operand:split --split 0.qkv.fprop"; done
    add "--bf16 0.qkv.fprop" "--bf16 first" "--bf16 0.fc.fprop"
    tales screen "--recipe x:mx"
    ;;
  operands)
    for products in fprop qkv.fprop dgrad wgrad dgrad+wgrad; do add "--bf16 $products"; done
    for operands in split w:split+dy:split x:split+dy:split x:split+w:split; do
      add "--recipe $operands"
    done
    tales operands "--bf16 fprop"
    ;;
  novels | shakespeare)
    text=(-i tinyshakespeare.txt)
    [ "$1" = shakespeare ] || text=(-i novels-10mb.txt -j novels-val.txt)
    arms=bf16,fp8
    add "$r1" "$r2"
    train "$1" bf16 --null --primary "fp8 $r1" --seeds 21-32 -- "${text[@]}" "${short[@]}"
    ;;
  kjv)
    arms="bf16,fp8,bf16 --sum-order tiles"
    add "$r1" "$r2"
    train kjv bf16 --seeds 8 -- -i kjv.txt "${short[@]}"
    ;;
  kjv-operands)
    add "--bf16 fprop" "--bf16 dgrad+wgrad" "--recipe deepseek" "--bf16 0.qkv.fprop" \
      "--recipe dy:e4m3 --bf16 0.qkv.fprop"
    train kjv-operands "fp8 --bf16 fprop" --seeds 8 -- -i kjv.txt "${short[@]}"
    build/compare --out build/closing-kjv --reference bf16 --null \
      --arms "bf16,fp8,fp8 $r1,fp8 $r2,bf16 --sum-order tiles,$arms" \
      --pool build/closing-kjv-runs/runs.tsv,build/closing-kjv-operands-runs/runs.tsv
    ;;
  epoch)
    add "$r1" "$r2"
    arms="$arms,fp32,bf16 --sum-order tiles"
    train epoch "fp8 $r1" --seeds 3 -- "${epoch[@]}"
    build/compare --out build/closing-epoch --arms "bf16,fp8,$arms" --null --reference bf16 \
      --pool dev/findings/novels-d2-low-lr-runs.tsv,build/closing-epoch-runs/runs.tsv
    ;;
  cheaper | cheaper-novels) # after shakespeare and epoch, and after novels
    add "--bf16 0.qkv.fprop" "--recipe dy:e4m3 --bf16 0.qkv.fprop"
    others="bf16,fp8,fp8 $r1,fp8 $r2,fp32,bf16 --sum-order tiles"
    of=shakespeare text=(-i tinyshakespeare.txt)
    [ "$1" = cheaper ] || of=novels text=(-i novels-10mb.txt -j novels-val.txt)
    train "cheaper-$of" "fp8 --bf16 0.qkv.fprop" --seeds 21-32 -- "${text[@]}" "${short[@]}"
    build/compare --out build/closing-$of --reference bf16 --null --primary "fp8 $r1" \
      --arms "$others,$arms" \
      --pool "build/closing-$of-runs/runs.tsv,build/closing-cheaper-$of-runs/runs.tsv"
    [ "$1" = cheaper ] || exit 0
    train cheaper-epoch "fp8 --bf16 0.qkv.fprop" --seeds 3 -- "${epoch[@]}"
    rows=dev/findings/novels-d2-low-lr-runs.tsv,build/closing-epoch-runs/runs.tsv
    build/compare --out build/closing-epoch --reference bf16 --null --arms "$others,$arms" \
      --pool "$rows,build/closing-cheaper-epoch-runs/runs.tsv"
    ;;
  gradients)
    make build/lab/gradients
    data=(-i novels-10mb.txt -j novels-val.txt -b 8 -t 256)
    to=build/closing-gradients
    mkdir -p $to
    printf 'seed\tstep\tway\ttensor\tSQNR\tcosine\tbias\tgain\n' > $to/rows.tsv
    for seed in 21 22 23; do
      [ -e "$to/$seed/DONE_00001000" ] || ./train_gpt_bf16 "${data[@]}" -e d2 -m 50 -x 1000 \
        -v 250 -s 0 -n 50 --keep 0 --seed $seed --data-seed $seed -o "$to/$seed"
      for step in 50 100 250 500 1000; do
        build/lab/gradients 32 -e "$to/$seed/model_$(printf %08d $step).bin" "${data[@]}" |
          awk -v at="$seed\t$step" -F'\t' '$2 ~ /^(linear|[01].[qkv]|wpe)$/ { print at "\t" $0 }' \
            >> $to/rows.tsv
      done
    done
    ;;
  *)
    echo "usage: dev/findings/closing.sh NAME; its first lines list the names" >&2
    exit 2
    ;;
esac
