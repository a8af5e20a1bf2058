#!/usr/bin/env bash
# nvcc builds the CUDA file for five architectures in four precisions without a warning, and the
# kernels of sm_90 keep their numbers in registers. CUDA's own FP8 conversions agree with the C
# file's. The benchmarks and tests compile; so do cuDNN's attention and NCCL. Without a GPU a
# trainer says so. Needs NVIDIA's CUDA Toolkit, and what `make test-cuda` leaves in build/cuda.
set -eu
. "$(dirname "$0")/env.sh"
command -v nvcc > /dev/null || fail "no nvcc on this machine"
[ -e build/cuda/reference_fp8.o ] || dev/cuda/test.sh fp8 data
read -ra flags <<< "$(make -s cuda-flags)"
architectures=()
for a in 80 89 90 100 120; do architectures+=(-gencode "arch=compute_$a,code=sm_$a"); done
for p in 0 1 2 3; do
  nvcc "${flags[@]}" -Werror all-warnings -DPRECISION=$p "${architectures[@]}" --threads 2 \
    -Xptxas -v -c train_gpt_fp8.cu -o build/cuda.o 2> build/ptxas || { cat build/ptxas; exit 1; }
  # Some spill a little: the 32-bit build's widest layernorm, and two kernels of sm_80.
  awk -v p=$p '
    /Compiling entry/ { name = $7; arch = $9 }
    / spill stores/ && !/ 0 bytes spill stores, 0 bytes spill loads/ {
      print arch, name, $0
      bad += p != 3 && arch ~ /sm_90/
    }
    END { if (bad) print "error: registers are spilled on sm_90"; exit bad > 0 }' build/ptxas
done
g++ -std=c++17 -O2 -Wall -Wextra -I "$(dirname "$(command -v nvcc)")/../include" \
  dev/cuda/check_cuda_fp8.cpp build/cuda/reference_fp8.o build/cuda/main_*.o -fopenmp -lm \
  -o build/check_cuda_fp8
build/check_cuda_fp8
for f in dev/bench/gpu_*.cu; do
  nvcc -std=c++17 -arch=sm_90 -Xcompiler -Wall,-Wextra,-Werror -c "$f" -o build/cuda.o
done
read -ra flags <<< "$(make -s nvcc-flags USE_CUDNN=0)"
nvcc "${flags[@]}" -Xcompiler -fopenmp -DPRECISION=0 -c dev/cuda/test_cuda.cu -o build/cuda.o
make train_gpt_bf16cu USE_CUDNN=1 PYTHON="$python" # with cuDNN's attention
./train_gpt_bf16cu --version
make train_gpt_fp8cu NCCL=1 MPI=1 PYTHON="$python" # several processes
rm train_gpt_fp8cu
make cuda
./train_gpt_fp8cu --help > build/help
rm -rf build/no-gpu
status=0
./train_gpt_fp8cu -x 1 -o build/no-gpu > build/no-gpu.txt 2>&1 || status=$?
[ $status = 2 ] || fail "without a GPU: expected status 2, found $status"
grep -E 'no NVIDIA driver|no CUDA device|driver supports' build/no-gpu.txt
[ ! -e build/no-gpu ] || fail "without a GPU: a directory was made"
