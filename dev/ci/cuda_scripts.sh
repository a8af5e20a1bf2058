#!/usr/bin/env bash
# The scripts for a GPU run without one: gpu_check.sh skips, the roofline and steps of
# many GPUs are computed, `make cuda` says that there is no compiler. The CUDA file has the sections
# and names of the C file.
set -eu
. "$(dirname "$0")/env.sh"
dev/gpu_check.sh smoke
python3 dev/bench/roofline.py > build/roofline
python3 dev/bench/scale.py --selftest
python3 dev/bench/scale.py > build/scale
make cuda NVCC=no-such-compiler
dev/cuda/check_names.sh
