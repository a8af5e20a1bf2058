#!/usr/bin/env bash
# Short runs under the sanitizers: memory and undefined behaviour in three precisions with gcc, data
# races in one with clang, whose OpenMP (Archer) tells the sanitizer what a barrier is.
#   dev/ci/sanitizers.sh memory | races
set -eu
. "$(dirname "$0")/env.sh"
make data/tales.d/train.txt data/glyphs.d/train.bin
build() { # compiler, sanitizers, precision, source
  "$1" -g -O1 -fopenmp -march=x86-64-v3 -ffp-contract=off -fsanitize="$2" \
    -fno-sanitize-recover=all -w -DPRECISION="$3" "${4:-train_gpt_fp8.c}" -o build/sanitized -lm
}
paper() { # compiler, sanitizers: a few steps of the networks of dev/paper
  build "$1" "$2" 0 dev/paper/cnn.c
  build/sanitized --steps 2 --batch 9 --channels 4
  build "$1" "$2" 0 dev/paper/lstm.c
  build/sanitized --task lm --steps 2 --batch 5 --time 9 --hidden 20 --test 5
  build/sanitized --task dates --steps 2 --batch 3 --hidden 20 --layers 2 --test 7
}
case ${1:-} in
  memory)
    export ASAN_OPTIONS=detect_leaks=0
    for precision in 0 1 3; do
      build gcc address,undefined $precision
      rm -rf build/run-asan
      build/sanitized "${short[@]}" -o build/run-asan
    done
    OMPI_CC=gcc mpicc -DUSE_MPI -g -O1 -fopenmp -march=x86-64-v3 -ffp-contract=off -w \
      -fsanitize=address,undefined -fno-sanitize-recover=all train_gpt_fp8.c \
      -o build/sanitized -lm
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    rm -rf build/run-asan # some processes own nothing
    OMP_NUM_THREADS=1 mpirun --oversubscribe -np 8 build/sanitized "${short[@]}" -e d1 -b 1 -d 704 \
      --shards 11 --grad-comm fp8 --fp8-moments -o build/run-asan
    paper gcc address,undefined
    ;;
  races)
    build clang thread 0
    archer=$(find /usr/lib -name 'libarcher.so*' | head -1)
    [ -n "$archer" ] || fail "no libarcher.so (it comes with libomp-dev)"
    rm -rf build/run-tsan
    export OMP_TOOL_LIBRARIES=$archer TSAN_OPTIONS="ignore_noninstrumented_modules=1"
    export OMP_NUM_THREADS=2
    build/sanitized "${short[@]}" -x 3 --shards 2 --grad-comm fp8 -o build/run-tsan
    paper clang thread
    ;;
  *) fail "expected memory or races, found '${1:-}'" ;;
esac
