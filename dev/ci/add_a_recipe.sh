#!/usr/bin/env bash
# The example of dev/RECIPES.md, a rule with a decaying maximum: its patch applies to a copy of the
# trainers, the copied text reaches the CUDA file, a run has the scales that the formula gives, and
# both files have the same ones.
set -eu
. "$(dirname "$0")/env.sh"
[ -e data/tales.d/train.txt ] || make data/tales.d/train.txt
rm -rf build/recipe
mkdir -p build/recipe
git ls-files -z | xargs -0 cp --parents -t build/recipe
cp -r data/tales.d build/recipe/data/
root=$PWD
cd build/recipe
patch -p1 < dev/recipes/decay.patch
dev/check/same_program.sh --write
sed -i 's/{"delayed", "delayed=2/{"decay=0.9", "delayed", "delayed=2/' dev/cuda/test_cuda.cu
grep -q '"decay=0.9"' dev/cuda/test_cuda.cu
make train_gpt_fp8
./train_gpt_fp8 --help recipe | grep 'decay=D'
./train_gpt_fp8 -e d1 -t 64 -b 2 -x 20 -s 0 -n 0 --scales-every 1 --recipe decay=0.9 -o run
case $python in /*) ;; */*) python=$root/$python ;; esac
"$python" dev/check/check_decay.py run 0.9
dev/cuda/test.sh fp8 scales quantize
