#!/usr/bin/env bash
# Faults planted into the CUDA file, one at a time: its tests must find each. These are a sample;
# `python3 dev/cuda/faults.py` plants all of them.
set -eu
. "$(dirname "$0")/env.sh"
python3 dev/cuda/faults.py denormal NaN fuse graphs SQNR "bias is" cuDNN "another attention" \
  architecture
