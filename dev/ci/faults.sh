#!/usr/bin/env bash
# Faults around a run: every fault that was once found, then short campaigns of kills, failing
# system calls and damaged files.
#   dev/ci/faults.sh          the C trainers
#   dev/ci/faults.sh cuda     the CUDA file, its kernels on this CPU
set -eu
. "$(dirname "$0")/env.sh"
if [ "${1:-}" = cuda ]; then
  dev/cuda/test.sh fp8 data
  trainer=(--trainer "build/cuda/test_cpu_fp8 --as-cuda")
  campaigns=(kill 8 inject 30 fuzz 40)
else
  make all build/compare
  trainer=()
  campaigns=(kill 40 inject 80 fuzz 300)
fi
"$python" dev/check/test_faults.py "${trainer[@]}"
"$python" dev/check/test_faults.py "${trainer[@]}" "${campaigns[@]}"
