#!/usr/bin/env bash
# Short runs under the sanitizers: memory and undefined behaviour in three precisions with gcc, data
# races in one with clang, whose OpenMP (Archer) tells the sanitizer what a barrier is.
#   dev/ci/sanitizers.sh memory | races
set -eu
. "$(dirname "$0")/env.sh"
make data/tales.d/train.txt
build() { # compiler, sanitizers, precision
  "$1" -g -O1 -fopenmp -march=x86-64-v3 -ffp-contract=off -fsanitize="$2" \
    -fno-sanitize-recover=all -w -DPRECISION="$3" train_gpt_fp8.c -o build/sanitized -lm
}
case ${1:-} in
  memory)
    for precision in 0 1 3; do
      build gcc address,undefined $precision
      rm -rf build/run-asan
      ASAN_OPTIONS=detect_leaks=0 build/sanitized "${short[@]}" -o build/run-asan
    done
    ;;
  races)
    build clang thread 0
    archer=$(find /usr/lib -name 'libarcher.so*' | head -1)
    [ -n "$archer" ] || fail "no libarcher.so (it comes with libomp-dev)"
    rm -rf build/run-tsan
    OMP_TOOL_LIBRARIES=$archer TSAN_OPTIONS="ignore_noninstrumented_modules=1" OMP_NUM_THREADS=2 \
      build/sanitized "${short[@]}" -x 3 -o build/run-tsan
    ;;
  *) fail "expected memory or races, found '${1:-}'" ;;
esac
