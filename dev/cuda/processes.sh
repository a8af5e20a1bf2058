#!/usr/bin/env bash
# Data parallelism of train_gpt_fp8.cu on this CPU: its kernels by on_cpu.h, NCCL by on_cpu_nccl.h,
# so that mpirun (Open MPI) trains with several processes. The same model and state, byte for byte,
# the same losses and scales for 1, 2, 3 and 4 processes, and across a resume on another number,
# with the second stream as early (2, 4) or as late (1, 3) as its waits allow; what has to be
# refused; the id by way of a file; planted faults. Programs lie in build/cuda.
#
#   dev/cuda/processes.sh [NAMES]     bits, resume, refused, file, planted; all without a name
set -u
cd "$(dirname "$0")/../.." || exit 1
repo=$PWD failed=0 checks=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export CUDA_ON_CPU_DEVICES=4

check() { # what, status
  checks=$((checks + 1))
  if [ "$2" = 0 ]; then echo "ok   $1"; else echo "FAIL $1"; failed=$((failed + 1)); fi
}
source=train_gpt_fp8.cu
build() { # precision, program, flags
  mkdir -p build/cuda
  # shellcheck disable=SC2046,SC2086 # options are words
  ${CXX:-g++} -x c++ -std=c++17 -O2 ${MARCH--march=native} -g1 -ffp-contract=off -fopenmp -Wall \
    -Wextra -Werror -Wno-unknown-pragmas -DCUDA_ON_CPU -DPRECISION="$1" -DUSE_NCCL ${3:-} \
    -include dev/cuda/on_cpu.h $(mpicc --showme:compile | sed 's/-I/-isystem/g') \
    -o "build/cuda/$2" -I. "$source" $(mpicc --showme:link) -ldl || exit 1
}
# Small pieces, so that there are several.
build 0 world_fp8 "-DUSE_MPI -DPIECE=20000" && build 3 world_fp32 "-DUSE_MPI -DPIECE=20000"
build 2 world_bf16 "-DUSE_MPI -DPIECE=20000" && build 0 world_file

data/tales --help > /dev/null 2>&1 || make -s data/tales
data/tales --out "$work/tales" > /dev/null &&
  head -c 60000 "$work/tales/train.txt" > "$work/text.txt"
cd "$work" || exit 1
RUN="-i text.txt -t 64 -b 1 -x 4 -v 2 -m 3 -n 2 --keep 0 -s 0 -u 2"
train() { # processes, program, arguments
  local fp8=
  [[ $2 = world_fp8 && $3 != -y ]] && fp8="--scales-every 1"
  # An even number of processes runs the second stream as early as may be, an odd one as late.
  local order=late
  [ $(($1 % 2)) != 0 ] || order=early
  # shellcheck disable=SC2086 # words
  CUDA_ON_CPU_STREAMS=$order timeout 100 mpirun --oversubscribe -np "$1" \
    "$repo/build/cuda/$2" "${@:3}" $fp8 > out.txt 2>&1
}
rows() { cut -f 1-7 "$1/log.tsv" | grep -v '^#'; }
same() { # two directories
  local status=0 name
  for name in model_00000002 state_00000002 model_00000004 state_00000004; do
    cmp "$1/$name.bin" "$2/$name.bin" || status=1
  done
  [ ! -e "$1/scales.tsv" ] || cmp "$1/scales.tsv" "$2/scales.tsv" || status=1
  diff <(rows "$1") <(rows "$2") || status=1
  return $status
}
bits() { # program, arguments
  local n program=$1
  shift
  rm -rf of_*
  for n in 1 2 3 4; do
    # shellcheck disable=SC2086 # words
    if ! train $n "$program" $RUN "$@" -o of_$n; then
      cat out.txt
      check "$program $*: $n processes" 1
      continue
    fi
    [ $n = 1 ] || { same of_1 of_$n; check "$program $*: $n processes, the bits of 1" $?; }
  done
}
test_bits() {
  bits world_fp8 -e d2 --shards 4
  bits world_fp8 -e d1 --shards 4 --grad-comm fp8
  bits world_fp8 -e d2 --shards 4 --grad-comm bf16 -d 512
  bits world_fp8 -e d2 --shards 5 --fp8-moments --grad-comm fp8
  bits world_fp8 -e d1 --shards 4 --recipe mx
  bits world_fp8 -e d1 --shards 4 --recipe deepseek --bf16 fprop
  bits world_fp8 -e d1 --shards 4 --recipe nvfp4+dy:stochastic+hadamard -d 512
  bits world_fp8 -e d1 --shards 4 --recipe stochastic --recompute 1 -d 512
  bits world_fp8 -e d1 --shards 4 --recipe split --bf16 0.fc
  bits world_fp8 -e d1 --shards 4 --recipe current --fp8-head --bf16 qkv.wgrad
  bits world_fp32 -e d2 --shards 4
  bits world_fp32 -e d1 --shards 4 --grad-comm fp8 --fp8-moments
  bits world_bf16 -e d2 --shards 4 --grad-comm bf16
  # shellcheck disable=SC2086
  train 1 world_fp8 $RUN -e d1 -o a --shards 2 -d 256 &&
    train 1 world_fp8 $RUN -e d1 -o b --shards 4 &&
    ! cmp -s a/model_00000004.bin b/model_00000004.bin
  check "a fault that must show: other shards make other bits" $?
}
test_resume() {
  local n
  # shellcheck disable=SC2086
  train 4 world_fp8 $RUN -e d2 --shards 4 --fp8-moments -o straight
  for n in 1 2 3; do
    rm -rf part && cp -r straight part && rm part/*_00000004*
    train $n world_fp8 -y -o part && same straight part
    check "begun by 4 processes, resumed by $n" $?
  done
  # shellcheck disable=SC2086
  train 1 world_fp8 $RUN -e d2 --shards 4 --fp8-moments -o alone && same straight alone
  check "straight by 1" $?
  rm alone/*_00000004* && train 4 world_fp8 -y -o alone && same straight alone
  check "begun by 1 process, resumed by 4" $?
  train 1 world_fp8 -y -o straight --eval && grep "^validation after step 4" out.txt > loss.txt &&
    train 3 world_fp8 -y -o straight --eval && grep -q "$(cat loss.txt)" out.txt
  check "--eval by 3" $?
}
refused() { # what it says, what was done
  local status=$?
  if [ $status = 0 ] || ! grep -q "$1" out.txt; then status=0 && cat out.txt; fi
  [ $status != 0 ]
  check "refused: $2" $?
}
test_refused() {
  # shellcheck disable=SC2086
  {
    CUDA_ON_CPU_DEVICES=2 train 3 world_fp8 $RUN -e d1 -o no
    refused "process 2 of this machine has no GPU, there are 2" "fewer GPUs than processes"
    CUDA_ON_CPU_GPU=0 train 2 world_fp8 $RUN -e d1 -o no
    refused "Duplicate GPU detected : rank 0 and rank 1" "two processes on one GPU"
    train 3 world_fp8 $RUN -e d1 -o no --shards 2
    refused "start at most so many processes" "more processes than shards"
    train 2 world_fp8 $RUN -e d1 -o no -d 192
    refused "multiple of batch x seq-len x shards" "a batch that the shards do not divide"
    timeout 60 mpirun --oversubscribe -np 1 "$repo/build/cuda/world_fp8" $RUN -e d1 -o no : \
      -np 1 "$repo/build/cuda/world_fp8" $RUN -e d1 -o no --seed 2 > out.txt 2>&1
    refused "rank 1: its seed is '2', that of rank 0 '1'" "other options"
  }
  [ ! -e no ] || [ -z "$(ls no/model* 2> /dev/null)" ]
  check "nothing was written" $?
}
test_file() { # a program without MPI: ranks by the environment, as torchrun sets them
  # shellcheck disable=SC2016
  local as_torchrun='export RANK=$OMPI_COMM_WORLD_RANK WORLD_SIZE=$OMPI_COMM_WORLD_SIZE
    export LOCAL_RANK=$RANK; exec "$@"'
  torchrun() { # processes, arguments
    timeout 60 mpirun --oversubscribe -np "$1" sh -c "$as_torchrun" sh \
      "$repo/build/cuda/world_file" "${@:2}" > out.txt 2>&1
  }
  export WORLD_DIR=$work/ids
  mkdir ids
  # shellcheck disable=SC2086
  {
    torchrun 3 $RUN -e d1 --shards 3 -o file --scales-every 1 &&
      train 3 world_fp8 $RUN -e d1 --shards 3 -o mpi && same file mpi
    check "the id by a file: the bits of MPI" $?
    [ -z "$(ls ids)" ]
    check "the file is gone" $?
    touch ids/nccl_id
    torchrun 2 $RUN -e d1 -o no
    refused "ids/nccl_id is there already" "an id of another run"
    WORLD_DIR='' torchrun 2 $RUN -e d1 -o no
    refused "WORLD_DIR: expected a directory" "no directory for the id"
    RANK=2 WORLD_SIZE=2 timeout 60 "$repo/build/cuda/world_file" $RUN -e d1 -o no > out.txt 2>&1
    refused "RANK: expected a number from 0 to 1, found '2'" "a rank beyond the processes"
    timeout 60 mpirun --oversubscribe -np 2 "$repo/build/cuda/world_file" $RUN -e d1 -o no \
      > out.txt 2>&1
    refused "build it for that MPI" "mpirun of a program without MPI"
  }
}
planted() { # what sed does to the source
  source=$work/planted.cu
  sed "$1" "$repo/train_gpt_fp8.cu" > "$source"
  ! cmp -s "$source" "$repo/train_gpt_fp8.cu" || check "not planted: '$1'" 1
  (cd "$repo" && build 0 world_planted -DUSE_MPI) || exit 1
}
other() { # what is missing, processes: one step makes other bits
  rm -rf other
  # shellcheck disable=SC2086
  train "$2" world_planted $RUN -e d1 --shards 4 -x 1 -o other &&
    ! cmp -s good/model_00000001.bin other/model_00000001.bin
  check "a fault that must show: $1" $?
}
told() { # words, processes, options: a run ends with them
  rm -rf other
  # shellcheck disable=SC2086
  ! train "$2" world_planted $RUN --shards 4 -o other "${@:3}" && grep -q "$1" out.txt
  check "told: $*" $?
}
test_planted() {
  local n words first join='stream_follows(STREAM, machine.second);'
  planted "\$a // nothing"
  # shellcheck disable=SC2086
  train 1 world_planted $RUN -e d1 --shards 4 -x 1 -o good &&
    train 2 world_planted $RUN -e d1 --shards 4 -x 1 -o same &&
    cmp good/model_00000001.bin same/model_00000001.bin
  check "no fault: 2 processes, the bits of 1" $?
  planted '/stream_follows(machine.second, stream);/d'
  other "the exchange does not wait for the backward pass" 2
  told "which the capture of stream 0 has not reached" 2 -e d1
  planted "/$join/d"
  other "the update does not wait for the exchange" 1
  told "stream 1 has work that nothing waits for" 1 -e d1
  planted "s/$join/if (g->exchange \& LAST_ROUND) $join/"
  other "the next round does not wait for the exchange" 1
  told "stream 1 has work that nothing waits for" 1 -e d1
  planted 's/phase_run(g, PHASE_MICRO_BATCH + LAST_ROUND, as_graph)/shards_add(g, LAST_ROUND)/'
  told "captured in a graph by some processes only" 3 -e d1
  first='if (g->exchange \& FIRST_ROUND \&\& world.rank == 1 \&\& '
  planted "/linear_backward(&f, dx, source, rows, g->record);/a \\
    $first !l \\&\\& !i) CUDA(cudaMemsetAsync(gpt_param(g, g->grad, QKVW, 0) + 7, 255, 4, STREAM));"
  for n in 2 4; do
    for words in "" "--grad-comm bf16" "--grad-comm fp8"; do
      # shellcheck disable=SC2086
      told "gradient is not finite; .* gradient of qkvw of layer 0 of rank 1;" $n -e d1 $words
    done
  done
  planted "/linear_backward(&f, dx, source, rows, g->record);/a \\
    if (g->exchange \& LAST_ROUND \&\& !world.rank \&\& machine.captures \&\& l == 1 \\
    \&\& i == LIN_FC) CUDA(cudaMemsetAsync(dx, 255, 4, STREAM));"
  for n in 2 3; do # in a graph: the second step
    told "step 2: the gradient is not finite; .* gradient of ln2b of layer 1 of rank 0;" $n -e d2
  done
}
[ $# -gt 0 ] || set -- bits resume refused file planted
for name; do "test_$name"; done
echo "$((checks - failed)) passed, $failed failed"
[ $failed = 0 ]
