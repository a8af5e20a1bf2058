#!/usr/bin/env bash
# shellcheck disable=SC2046,SC2086 # options are words
# Builds and runs dev/cuda/test_cuda.cu:  dev/cuda/test.sh [--gpu] [fp8|fp16|bf16|fp32] [names of tests]
# On this CPU by on_cpu.h, or with --gpu by nvcc on the GPU (ARCH=90). Objects lie in build/cuda.
set -e
cd "$(dirname "$0")/../.."
gpu=
if [ "$1" = --gpu ]; then gpu=1; shift; fi
precision=${1:-fp8}
[ $# -gt 0 ] && shift
number() { case $1 in fp8) echo 0 ;; fp16) echo 1 ;; bf16) echo 2 ;; fp32) echo 3 ;; *) echo "no precision $1" >&2; exit 2 ;; esac }
p=$(number "$precision")
out=build/cuda
mkdir -p $out
CC=${CC:-gcc} CXX=${CXX:-g++} MARCH=${MARCH--march=native} PROGRAM=${PROGRAM:-test_cpu}
reference="$CC -std=gnu11 -O2 $MARCH -ffp-contract=off -fopenmp -Wall -Wextra -Werror -c dev/cuda/reference.c"
newer() { [ ! -e "$1" ] || [ train_gpt_fp8.c -nt "$1" ] || [ dev/cuda/reference.c -nt "$1" ] || [ dev/cuda/reference.h -nt "$1" ]; }
for q in fp8 fp16 bf16 fp32; do # whole programs
    if newer $out/main_$q.o; then $reference -DPRECISION="$(number $q)" -DREFERENCE_MAIN=ref_main_$q -o $out/main_$q.o; fi
done
if newer $out/reference_$precision.o; then $reference -DPRECISION=$p -o $out/reference_$precision.o; fi
objects="$out/reference_$precision.o $out/main_fp8.o $out/main_fp16.o $out/main_bf16.o $out/main_fp32.o"
if [ $gpu ]; then
    nvcc $(make -s nvcc-flags ${ARCH:+GPU_ARCH=sm_$ARCH}) -DPRECISION=$p $TRAINER -o $out/test_gpu_$precision dev/cuda/test_cuda.cu $objects -lcublasLt -Xcompiler -fopenmp
    exec $out/test_gpu_$precision "$@"
fi
$CXX -x c++ -std=c++17 ${OPTIMISE:--O2} $MARCH -g1 -ffp-contract=off -fopenmp -Wall -Wextra -Werror -Wno-unknown-pragmas $SANITIZE -DCUDA_ON_CPU -DPRECISION=$p \
    $TRAINER -include dev/cuda/on_cpu.h -o $out/${PROGRAM}_$precision dev/cuda/test_cuda.cu -x none $objects
exec $out/${PROGRAM}_$precision "$@"
