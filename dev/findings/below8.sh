#!/usr/bin/env bash
# The ladder below eight bits: BF16, FP8, MXFP8, NVFP4, MXFP4, with and without stochastic rounding of
# dy and the Hadamard transform, paired by seed, with null arms, a placebo and a positive control.
#
#   SEEDS=5 JOBS=2 dev/findings/below8.sh tales          80 runs of one to two minutes of a core
#   NOVELS=DIR dev/findings/below8.sh novels             novels-10mb.txt and novels-val.txt lie in DIR
#
# A stopped ladder goes on with the same command. Its tables lie in build/below8-NAME.
set -eu
cd "$(dirname "$0")/../.."
kept="--bf16 0.qkv" # the matrix that stays in 16 bits
arms="bf16,fp8,fp8 --recipe mx"
for format in nvfp4 mxfp4; do
  for more in "" +dy:stochastic +hadamard +dy:stochastic+hadamard; do
    arms="$arms,fp8 --recipe $format$more $kept"
  done
done
arms="$arms,fp8 --recipe nvfp4,fp8 --recipe e2m1 $kept" # all of it in FP4; no blocks: the control
case ${1:-} in
  tales) # the short run at a low rate of tales-short-d2-low-lr
    make data/tales.d/train.txt
    data="-i data/tales.d/train.txt -j data/tales.d/val.txt"
    run="-e d2 -b 4 -t 256 -m 100 -x 1500 -v 250 -q 0 -l 5e-4"
    ;;
  novels) # one epoch of novels-d2
    data="-i $NOVELS/novels-10mb.txt -j $NOVELS/novels-val.txt"
    run="-e d2 -b 8 -t 256 -m 50 -x 4883 -v 500 -n 500"
    ;;
  *)
    echo "usage: dev/findings/below8.sh tales|novels" >&2
    exit 2
    ;;
esac
make all build/compare
# shellcheck disable=SC2086 # options are words
OMP_NUM_THREADS=${JOBS:-2} build/compare --reference bf16 --arms "$arms" --null \
  --primary "fp8 --recipe nvfp4+dy:stochastic+hadamard $kept" \
  --placebo "fp8 --recipe nvfp4 --bf16 0.fc" --seeds "${SEEDS:-5}" --jobs "${JOBS:-2}" \
  --out "build/below8-$1" -- $data $run -s 0
