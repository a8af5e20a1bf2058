#!/usr/bin/env bash
# The ladder below eight bits: BF16, FP8, MXFP8, NVFP4, MXFP4, with and without stochastic rounding
# of dy and the Hadamard transform, paired by seed.
#
#   SEEDS=5 JOBS=2 dev/findings/below8.sh tales
#       80 runs of some two minutes of a core: 16 arms, null arms, a placebo, a positive control.
#   SEEDS=5 JOBS=2 dev/findings/below8.sh novels
#       30 runs of some 10 minutes. BF16, FP8 and FP16 are the rows that are there; novels-10mb.txt
#       and novels-val.txt lie in this repository's root, as those rows name them.
#
#   SEEDS=3 JOBS=2 dev/findings/below8.sh d6
#       9 runs of some 7 minutes: first and last block in 16 bits, beside the first block's qkv.
#
#   dev/findings/below8.sh pairs [FILE]
#       Differences between those arms of FP4 that the rows in FILE have, with Holm's correction
#       over these (NumPy, SciPy).
#
# A stopped ladder goes on with the same command. Its tables lie in build/below8-NAME.
set -eu
cd "$(dirname "$0")/../.."
kept="--bf16 0.qkv" # the matrix that stays in 16 bits
both=+dy:stochastic+hadamard
primary="fp8 --recipe nvfp4$both $kept"
placebo="fp8 --recipe nvfp4 --bf16 0.fc"
fp4() { # additions to a recipe: an arm of either format with each of them
  for format in nvfp4 mxfp4; do
    for more; do arms="$arms,fp8 --recipe $format$more $kept"; done
  done
}
train() { # options of build/compare
  make all build/compare
  OMP_NUM_THREADS=${JOBS:-2} build/compare --seeds "${SEEDS:-5}" --jobs "${JOBS:-2}" "$@"
}
case ${1:-} in
  pairs)
    rows=${2:-dev/findings/tales-short-d2-low-lr-runs.tsv}
    pairs=""
    pair() { # recipes A and B: the difference of their arms
      for recipe; do grep -qsF "fp8 --recipe $recipe $kept" "$rows" || return 0; done
      pairs="$pairs,fp8 --recipe $1 $kept;fp8 --recipe $2 $kept"
    }
    for format in nvfp4 mxfp4; do
      for more in +dy:stochastic +hadamard $both; do pair "$format$more" "$format"; done
    done
    for more in "" +dy:stochastic +hadamard $both; do pair "nvfp4$more" "mxfp4$more"; done
    test "$pairs" || { echo "below8.sh: expected rows of FP4 arms in '$rows'" >&2; exit 2; }
    python3 dev/findings/adjust.py --pairs "${pairs#,}" "$rows"
    ;;
  tales) # the short run at a low rate of tales-short-d2-low-lr
    make data/tales.d/train.txt
    arms="bf16,fp8,fp8 --recipe mx"
    fp4 "" +dy:stochastic +hadamard $both
    # All of it in FP4; no blocks, which is the control.
    arms="$arms,fp8 --recipe nvfp4,fp8 --recipe e2m1 $kept"
    train --out build/below8-tales --arms "$arms" --reference bf16 --primary "$primary" --null \
      --placebo "$placebo" -- -i data/tales.d/train.txt -j data/tales.d/val.txt \
      -e d2 -b 4 -t 256 -m 100 -x 1500 -v 250 -q 0 -l 5e-4 -s 0
    ;;
  novels) # one epoch of novels-d2
    arms="fp8 --recipe mx"
    fp4 "" $both
    arms="$arms,$placebo"
    train --out build/below8-novels-runs --arms "$arms" --reference "fp8 --recipe mx" -- \
      -i novels-10mb.txt -j novels-val.txt -e d2 -b 8 -t 256 -m 50 -x 4883 -v 500 -n 500
    build/compare --out build/below8-novels --arms "bf16,fp8,fp16,$arms" --reference bf16 \
      --primary "$primary" --placebo "$placebo" \
      --pool dev/findings/novels-d2-runs.tsv,build/below8-novels-runs/runs.tsv
    ;;
  d6) # the short run of tales-short-d2-low-lr, a third as long, with six blocks
    make data/tales.d/train.txt
    arms="bf16,fp8 --recipe nvfp4 $kept,fp8 --recipe nvfp4 --bf16 first+last"
    train --out build/below8-d6 --arms "$arms" --reference bf16 \
      --primary "fp8 --recipe nvfp4 --bf16 first+last" -- -i data/tales.d/train.txt \
      -j data/tales.d/val.txt -e d6 -b 4 -t 256 -m 50 -x 500 -v 100 -q 0 -l 5e-4 -s 0
    ;;
  *)
    echo "usage: dev/findings/below8.sh tales|novels|d6|pairs" >&2
    exit 2
    ;;
esac
