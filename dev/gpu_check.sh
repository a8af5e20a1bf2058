#!/usr/bin/env bash
# shellcheck disable=SC2086,SC2046 # options are words, and paths here have no blanks
# What only a GPU can show, in calls that each end well inside ten minutes and are useful even if they are the last.
#
#   dev/gpu_check.sh --build [--llmc PATH]   anywhere with nvcc: programs for GPU_ARCH (sm_90) and data, to build/gpu
#   dev/gpu_check.sh smoke                   on the GPU, <= 90 s: does every kernel, product and build run at all
#   dev/gpu_check.sh truth                   <= 4 min: is it right: bytes, bits, memory, checkpoints, losses
#   dev/gpu_check.sh speed                   <= 8 min: ceilings, whole steps beside others, where the time goes
#   dev/gpu_check.sh depth                   <= 8 min: races, uninitialized memory, memory traffic of the fused kernels
#   dev/gpu_check.sh long                    <= 9 min: GPT-2 124M on novels, FP8 and BF16, two seeds
#   dev/gpu_check.sh --collect DIR           back home: puts what a call left in $OUT with the other results
#   dev/gpu_check.sh --rehearse              anywhere: every stage's logic on stubs, each made to fail once
#
# How to spend 30 minutes of a GPU that is to be had for one command at a time:
#   Before, here: `PYTHON=... dev/gpu_check.sh --build` must end without a FAILED line and without one of what is missing (its Python
#   needs nvidia-cudnn-frontend, numpy and tiktoken), and `--rehearse` must pass. Commit first: the calls check that programs and tree
#   belong together.
#   Each call: take the tree with build/gpu (for `long` also build/gpu-long) there, run `dev/gpu_check.sh CALL` with a limit 30 seconds above the call's
#   own, take what came back in $OUT (three files a call) and give its folder to `--collect` here. A fresh machine takes a minute or
#   two to start: 30 minutes are four calls, or three and one repeated.
#   1. smoke. One fault is one line with the status of the call that failed; what its program said is in smoke.log. If something fails that
#      all need (kernels of FP8 or BF16, steps), mend it here, --build again, smoke again: nothing else is worth its minutes before.
#      ITEMS="fp8-attention bf16-attention" repeats these alone. If only cuDNN fails, go on with NO_CUDNN=1. If only one recipe or
#      build fails, note it and go on.
#   2. truth. Wrong bytes, other bits or a memory fault: mend first. A loss or a test near its bound: note it and go on.
#   3. speed. Its table of milliseconds by kind of kernel says what to mend next.
#   4. long, with LONG_SECONDS= what is left, less a minute; or depth instead, if truth found something.
#   After each call commit dev/bench/RESULTS_GPU.md, bad results too.
#
# A call prints a line a stage as it ends, then what failed, and what to run next. A stage that fails or runs out of time does not stop
# the next one. After every stage all results are copied to the folder that OUT names: CALL.md, CALL.log, CALL.tgz. A call that is
# repeated with ONLY replaces the results of these stages alone. Nothing is installed, nothing is fetched, no setting of the card is
# changed. Libraries are found in the toolkit or in Python's packages; nvcc is not needed.
#
# Environment: ONLY="steps-124M" (these stages), ITEMS="fp8-attention" (these checks of a stage), TESTS="layernorm" (these tests of a
# program), NO_CUDNN=1, LONG_SECONDS=545, STEPS=20 (a timed run), FP8_OPTIONS (more options for timed FP8 arms), JOBS (programs at
# once), GPU_ARCH=sm_90, PYTHON=python3.
set -u
export LC_ALL=C
cd "$(dirname "$0")/.." || exit 1
self=$PWD/dev/gpu_check.sh
arch=${GPU_ARCH:-sm_90} python=${PYTHON:-python3} steps=${STEPS:-20} jobs=${JOBS:-$(nproc)}
gpu=${GPU_DIR:-build/gpu} work=${GPU_WORK:-build/gpu/run} long=${GPU_LONG:-build/gpu-long} results=${RESULTS:-dev/bench/RESULTS_GPU.md}
cuda=${CUDA_HOME:-/usr/local/cuda}
PATH=$PATH:$cuda/bin
precisions="fp8 fp16 bf16 fp32"
tab=$(printf '\t')
has() { command -v "$1" > /dev/null 2>&1; }

# ==== the calls: seconds of each, then its stages with theirs ========================================================
limits() { # a rehearsal's are longer or shorter
  calls "$1" | awk -v scale="${REHEARSED_SCALE:-1}" '{ printf "%d", $1 * scale; for (i = 2; i <= NF; i++) { split($i, f, ":"); printf " %s:%d", f[1], f[2] * scale } }
    END { exit NR == 0 }'
}
calls() {
  case $1 in
    smoke) echo "90 versions:14 kernels:33 steps:28 matrix:12" ;;
    truth) echo "240 tests:90 repeats:40 exchange:20 memcheck:50 losses:35" ;;
    speed) echo "480 ceilings:40 steps-124M:130 trace-124M:40 steps-1.5B:115 trace-1.5B:45 peers:105" ;;
    depth) echo "480 racecheck:120 initcheck:120 ncu:120 products:110" ;;
    long) echo "$((${LONG_SECONDS:-545} + 10)) train:${LONG_SECONDS:-545}" ;;
    *) return 1 ;;
  esac
}
next_call() {
  case $1 in
    smoke) echo "all well: truth. Else mend what failed, --build here, take build/gpu there again, smoke again" ;;
    truth) echo "all well: speed. Wrong bytes or a memory fault: mend first" ;;
    speed) echo "long (take build/gpu-long along), or depth if truth found something" ;;
    depth) echo "long (take build/gpu-long along), as far as the time reaches" ;;
    long) echo "--collect here, then commit $results" ;;
  esac
}

# ==== build ==========================================================================================================
le32() { # a number as four bytes
  # shellcheck disable=SC2059
  printf "\\x$(printf %02x $(($1 & 255)))\\x$(printf %02x $(($1 >> 8 & 255)))\\x$(printf %02x $(($1 >> 16 & 255)))\\x$(printf %02x $(($1 >> 24)))"
}
shard() { # FILE of uint16 tokens, with a vocabulary of 50257: a token shard on stdout
  local field
  for field in 20240520 1 $(($(wc -c < "$1") / 2)) 50257; do le32 "$field"; done
  head -c $((1024 - 16)) /dev/zero
  cat "$1"
}
compile() { # name, command...: says what failed, and goes on; in the background, two at once
  local name=$1
  shift
  while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done
  { if "$@" > "$gpu/$name.build" 2>&1; then echo "built $name"; rm -f "$gpu/$name.build"; else
    echo "FAILED to build $name: $(grep -m1 -iE 'error|cannot|undefined|No such' "$gpu/$name.build" || tail -1 "$gpu/$name.build")"
    touch $gpu/failed
  fi; } &
}
cpu_losses() { # precision: 300 steps of d4 on this CPU, to hold the GPU's beside
  local out=$gpu/cpu-$1
  rm -rf "$out"
  make -s "train_gpt_$1" > /dev/null 2>&1 && "./train_gpt_$1" $d4 -o "$out" > "$out.out" 2>&1 && rows_of "$out" | cut -f1,3 > "$gpu/data/cpu-$1.tsv"
  if [ ! -s "$gpu/data/cpu-$1.tsv" ]; then echo "FAILED to train d4 on the CPU in $1: $(tail -1 "$out.out")"; touch $gpu/failed; fi
  rm -rf "$out" "$out.out"
}
fingerprint() { # of what the programs are made of
  cat train_gpt_fp8.cu train_gpt_fp8.c dev/cuda/test_cuda.cu dev/cuda/reference.c dev/bench/gpu_cublaslt.cu dev/bench/gpu_trace.cpp | sha256sum | cut -c1-12
}
build() {
  local flags commit sources missing="" cudnn p precision=0 llmc="" text=data/tales.d/train.txt built_mib tracked_mib reference
  if [ "${1:-}" = --llmc ]; then llmc=${2:-}; fi
  if ! has nvcc; then echo "gpu_check: no nvcc on this machine; nothing is built"; return 0; fi
  mkdir -p $gpu/data $gpu/obj
  sources=$(fingerprint)
  rm -f $gpu/failed $gpu/*.build $gpu/train_gpt_*cu $gpu/test_cuda_* $gpu/gpu_* # nothing stale stays when a build fails
  # `make cuda`'s own flags: with cuDNN's attention where its headers lie
  flags="$(make -s nvcc-flags PYTHON="$python" GPU_ARCH="$arch") -Xlinker -s"
  commit=$(git describe --always --dirty 2> /dev/null || echo unknown)
  case $flags in *HAS_CUDNN*) cudnn="with cuDNN" ;; *) cudnn="without cuDNN's headers" ;; esac
  # the C file, which the tests compare with: for any x86-64 with AVX2, as it may run on another machine than this one
  reference="cc -std=gnu11 -O2 $([ "$(uname -m)" = x86_64 ] && echo -march=x86-64-v3) -ffp-contract=off -fopenmp -c dev/cuda/reference.c"
  for p in $precisions; do
    compile main_$p $reference -DPRECISION=$precision -DREFERENCE_MAIN=ref_main_$p -o $gpu/obj/main_$p.o
    compile reference_$p $reference -DPRECISION=$precision -o $gpu/obj/reference_$p.o
    precision=$((precision + 1))
  done
  wait
  precision=0
  for p in $precisions; do
    compile train_gpt_${p}cu nvcc $flags -DPRECISION=$precision "-DCOMMIT=\"$commit\"" train_gpt_fp8.cu -o $gpu/train_gpt_${p}cu -lcublasLt -Xlinker -rpath=$cuda/lib64
    compile test_cuda_$p nvcc $flags -Xcompiler -fopenmp -DPRECISION=$precision dev/cuda/test_cuda.cu -o $gpu/test_cuda_$p \
      $gpu/obj/reference_$p.o $gpu/obj/main_fp8.o $gpu/obj/main_fp16.o $gpu/obj/main_bf16.o $gpu/obj/main_fp32.o -lcublasLt -Xlinker -rpath=$cuda/lib64
    precision=$((precision + 1))
  done
  compile gpu_cublaslt nvcc -O3 -std=c++17 -arch="$arch" -Xlinker -rpath="$cuda/lib64" dev/bench/gpu_cublaslt.cu -lcublasLt -o $gpu/gpu_cublaslt
  compile gpu_trace.so g++ -O2 -std=c++17 -shared -fPIC -I"$cuda/include" -I"$cuda/extras/CUPTI/include" dev/bench/gpu_trace.cpp \
    -L"$cuda/lib64" -L"$cuda/lib" -L"$cuda/extras/CUPTI/lib64" -lcupti -o $gpu/gpu_trace.so
  wait
  if [ -n "$llmc" ]; then
    if [ -x "$llmc" ]; then cp "$llmc" $gpu/llmc_train_gpt2cu && echo "took llm.c from $llmc"; else
      echo "FAILED to take llm.c: $llmc is no program"
      touch $gpu/failed
    fi
  fi
  # Data: a text for tiny runs, whose bytes are the tokens; tiny Shakespeare in GPT-2's tokens where it lies beside the repository,
  # else pairs of the text's bytes as tokens.
  make -s data/tales.d/train.txt > /dev/null 2>&1
  if [ -s $text ]; then head -c 1000000 $text > $gpu/data/tales.txt; else echo "FAILED to make data"; touch $gpu/failed; fi
  if [ -s ../shared/data/tinyshakespeare.gpt2.u16 ]; then shard ../shared/data/tinyshakespeare.gpt2.u16 > $gpu/data/gpt2.bin; else
    head -c 800000 $text > $gpu/obj/tokens && shard $gpu/obj/tokens > $gpu/data/gpt2.bin
  fi
  for p in fp8 bf16; do [ "$gpu/data/cpu-$p.tsv" -nt train_gpt_fp8.c ] || cpu_losses $p; done
  build_long
  rm -rf $gpu/obj
  if [ "$sources" != "$(fingerprint)" ]; then echo "FAILED: the sources changed meanwhile; build again"; touch $gpu/failed; fi
  echo "commit $commit, $arch, $(nvcc --version | grep -oE 'release [0-9.]+'), $cudnn, sources $sources" > $gpu/VERSION
  cat $gpu/VERSION
  uses_cudnn || missing="cuDNN's frontend (pip install nvidia-cudnn-frontend, PYTHON=)"
  [ -s $long/train.bin.xz ] || missing="$missing${missing:+; }the long run's data"
  [ -x $gpu/llmc_train_gpt2cu ] || missing="$missing${missing:+; }llm.c (--llmc PATH; speed goes without)"
  if [ -n "$missing" ]; then echo "MISSING: $missing"; fi
  rm -rf $gpu/run/trace-* # may be large
  built_mib=$(du -cm $gpu $long 2> /dev/null | tail -1 | cut -f1)
  tracked_mib=$(git ls-files -z 2> /dev/null | xargs -0 -r du -cm 2> /dev/null | tail -1 | cut -f1)
  echo "$built_mib MiB in $gpu and $long, $((built_mib + ${tracked_mib:-0})) MiB with the tracked files"
  if [ -e $gpu/failed ]; then rm -f $gpu/failed; return 1; fi
}
# The long run's data: novels in GPT-2's tokens, packed. They lie beside the repository, or nothing is made.
build_long() {
  local novels=../shared/data
  if [ -s $long/train.bin.xz ]; then return; fi
  if [ ! -s $novels/novels-train.txt.xz ] || ! has xz || ! "$python" -c 'import numpy, tiktoken' 2> /dev/null; then
    echo "no data for the long run: it needs $novels/novels-train.txt.xz, xz, and Python's numpy and tiktoken"
    return
  fi
  mkdir -p $long
  xz -dkc $novels/novels-train.txt.xz > $long/novels.txt
  if "$python" data/tokens.py $long/novels.txt --val $novels/novels-val.txt --vocab-kind gpt2 --vocab $novels/gpt2-r50k.tiktoken --out $long/novels > $long/out 2>&1; then
    xz -6 -c $long/novels_train_000000.bin > $long/train.bin.xz && mv $long/novels_val_000000.bin $long/val.bin
  else
    echo "FAILED to make the long run's data: $(tail -1 $long/out)"
    touch $gpu/failed
  fi
  rm -f $long/novels.txt $long/out $long/novels_train_* $long/gpt2_tokenizer.bin
}

# ==== stages =========================================================================================================
note() { echo "$*" > "$work/$stage.note"; echo "$*"; }
own=${NO_CUDNN:+--attention own}
tiny="-i $gpu/data/tales.txt -j $gpu/data/tales.txt -m 1 -v 0 -s 0 -n 0"
d4="$tiny ${REHEARSED_D4:--e d4 -t 256 -b 4 -x 300}"
large="-i $gpu/data/gpt2.bin -j $gpu/data/gpt2.bin -m 1 -v 0 -s 0 -n 0 ${REHEARSED_T:--t 1024} $own"
limited() { timeout --foreground -k 3 "$@"; } # stays in the stage's process group, so that the stage's limit ends it too
uses_cudnn() { [ -z "${NO_CUDNN:-}" ] && grep -q 'with cuDNN' $gpu/VERSION; }
rows_of() { grep -v '^#' "$1/log.tsv" 2> /dev/null | grep '^[0-9]'; } # of a run's log
only_named() { [ -z "${ITEMS:-}" ] || [[ " $ITEMS " = *" ${1// /-} "* ]]; }

# An item is a check in the background, `jobs` at once: one line when it ends, with what its first failing call said.
item() { # name, command...
  local name=$1 begin=$EPOCHREALTIME out="$work/$stage.d/${1// /-}" status seconds line
  shift
  "$@" > "$out" 2>&1 < /dev/null
  status=$?
  seconds=$(awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
  line=$(tail -1 "$out" | cut -c1-150)
  if [ $status != 0 ]; then
    { echo "#### $name, status $status" && head -c 20000 "$out"; } >> "$work/$stage.failed.log"
    [ $status != 124 ] || line="ran past its limit; last: $line"
    line="status $status: $(telling "$out" || echo "$line")"
  fi
  line=$(printf '%-4s %-34s %5s s  %s' "$([ $status = 0 ] && echo ok || echo FAIL)" "$name" "$seconds" "$line" | cut -c1-320)
  echo "$line" >> "$work/$stage.items"
  echo "$line"
}
telling() { # what a program that failed said: the first line of the most telling kind
  local kind
  for kind in '^failed|^FAIL|^=+ (Invalid|Misaligned|Uninit|Error|Race|Program hit)' 'has no |on_cpu:|failed:|not finite|no kernel' '[Ee]rror|does not|expected'; do
    grep -av '^ok ' "$1" | grep -m1 -aE "$kind" && return
  done
  return 1
}
spawn() { # name, command...
  only_named "$1" || return 0
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  item "$@" &
}
items_begin() { rm -rf "$work/$stage.d" "$work/$stage.failed.log" && mkdir -p "$work/$stage.d" && : > "$work/$stage.items"; }
items_end() { # how many are well; status 1 if one is not
  wait
  note "$(grep -c '^ok' "$work/$stage.items") of $(grep -c . "$work/$stage.items") well$(sed -nE 's/^FAIL (.*[^ ]) +[0-9.]+ s  .*/\1/p' "$work/$stage.items" | awk '{ printf "%s %s", (NR > 1 ? "," : "; failed:"), $0 }')"
  ! grep -q '^FAIL' "$work/$stage.items" && [ -s "$work/$stage.items" ]
}

stage_versions() {
  if has nvidia-smi; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,temperature.gpu --format=csv,noheader | head -1 | tee $work/card
  fi
  cat $gpu/VERSION
  nproc && uname -r
  limited 10 $gpu/train_gpt_fp8cu --version || return 1
  note "$(cat $work/card 2> /dev/null || echo 'an unknown card')"
}

# Every class of kernel in every build by itself, and every kind of product: a process each, since a fault of the device ends one.
stage_kernels() {
  local p t
  items_begin
  for t in ${TESTS:-numbers quantize scales fused encoder layernorm gelu attention cudnn classifier linear products optimizer steps}; do
    for p in $precisions; do
      case "$p $t" in
        *" quantize" | *" scales" | *" fused" | *" products" | *" steps") [ $p = fp8 ] || continue ;;
        *" cudnn") { uses_cudnn && [ $p != fp32 ]; } || continue ;;
      esac
      spawn "$p $t" limited 25 "$gpu/test_cuda_$p" "$t"
    done
  done
  items_end
}

# Four steps of which three must be graphs, with `passes` separate quantizing passes in each (attention's output, turned, in each layer).
steps_run() { # build, passes or -, options...
  local p=$1 passes=$2 out="$work/$stage.d/run-$BASHPID" losses graphs status
  shift 2
  limited 20 $gpu/train_gpt_${p}cu $tiny -e d2 -t 64 -b 2 -x 4 $([ $p = fp8 ] && echo --scales-every 0) -o "$out" "$@" > "$out.txt" 2>&1
  status=$?
  if [ $status != 0 ]; then tail -5 "$out.txt"; return $status; fi
  losses=$(rows_of "$out" | awk -F'\t' '$3 + 0 > 0 && $3 < 7 { n++ } END { print n + 0 }')
  graphs=$(grep 'CUDA graphs' "$out.txt")
  if [ "$losses" != 4 ]; then echo "FAIL: $losses of 4 steps have a loss between 0 and 7"; return 1; fi
  if [[ "$graphs" != "3 of these steps"* ]]; then echo "FAIL: expected 3 of 4 steps as graphs: $graphs"; return 1; fi
  if [ "$passes" != - ] && [[ "$graphs" != *"each with $passes separate"* ]]; then echo "FAIL: expected $passes separate quantizing passes: $graphs"; return 1; fi
  echo "loss $(rows_of "$out" | tail -1 | cut -f3); $graphs; $(grep -m1 '^attention_by' "$out.txt" | tr -s ' ')"
}
stage_steps() {
  local r here="--attention own"
  items_begin
  spawn "fp8 own attention" steps_run fp8 2 $here ${STEPS_OPTIONS:-}
  if uses_cudnn; then
    spawn "fp8 cudnn" steps_run fp8 4 --attention cudnn -t 128 # its outputs are quantized apart, too
    for r in fp16 bf16; do spawn "$r cudnn" steps_run $r - --attention cudnn -t 128; done
  fi
  for r in fp16 bf16 fp32; do spawn "$r own attention" steps_run $r - $here; done
  spawn "fp8 head" steps_run fp8 3 --fp8-head $here
  spawn "fp8 recompute" steps_run fp8 2 --recompute 1 $here
  spawn "fp8 accumulated" steps_run fp8 2 -d 512 $here
  for r in current scale=1 rowwise deepseek mx; do
    spawn "fp8 recipe $r" steps_run fp8 "$([ $r = scale=1 ] && echo 2 || echo -)" --recipe $r $here
  done
  spawn "fp8 emulated" steps_run fp8 2 --emulate 1 $here
  spawn "fp8 some in bf16" steps_run fp8 - --bf16 first+fc.wgrad $here
  items_end
}

stage_matrix() {
  $gpu/gpu_cublaslt matrix --tsv $work/matrix.tsv || { note "stopped after $(grep -c '^matrix' $work/matrix.tsv) combinations"; return 1; }
  note "$(awk -F'\t' '$1 == "matrix" && $2 != "a" { n++; offered += $11 == "SUCCESS"; ran += $12 == "SUCCESS"; wrong += $12 == "SUCCESS" && !($13 + 0 < 0.12) }
    END { printf "%d combinations, %d ran, %d offered and then refused, %d wrong", n, ran, offered - ran, wrong }' $work/matrix.tsv)"
  [[ "$(cat "$work/$stage.note")" = *" 0 wrong" ]]
}

stage_tests() { # whole test programs, side by side
  local p
  items_begin
  for p in $precisions; do spawn "test_cuda_$p" limited 85 "$gpu/test_cuda_$p" ${TESTS:-}; done
  items_end
}

bits() { # the directory of a run: hashes of its log but for times, its scales, its weights and moments
  local f
  rows_of "$1" | cut -f1-7 | sha256sum | cut -c1-16
  for f in "$1/scales.tsv" "$1"/model_*20.bin "$1"/state_*20.bin; do
    if [ -f "$f" ]; then sha256sum < "$f" | cut -c1-16; else echo "-"; fi
  done
}
repeat_run() { # build, options...: two runs and a resume have the same bits
  local p=$1 out="$work/$stage.d/bits-$BASHPID" d
  shift
  for d in one two; do
    limited 25 $gpu/train_gpt_${p}cu $tiny ${REHEARSED_SMALL:--e d4 -t 256 -b 4} -x 20 -n 10 --keep 0 "$@" -o "$out-$d" || return
  done
  cp -r "$out-one" "$out-resumed" && rm -f "$out-resumed"/*00000020*
  limited 25 $gpu/train_gpt_"${p}"cu -y -o "$out-resumed" || return
  for d in two resumed; do
    [ "$(bits "$out-one")" = "$(bits "$out-$d")" ] || { echo "FAIL: other bits in run '$d': $(bits "$out-one" | tr '\n' ' ') and $(bits "$out-$d" | tr '\n' ' ')"; return 1; }
  done
  rm -f "$out"-*/*.bin
  echo "the same bits: $(bits "$out-one" | head -1)"
}
stage_repeats() {
  local p
  items_begin
  for p in fp8 bf16; do
    spawn "$p own attention" repeat_run $p --attention own
    if uses_cudnn; then spawn "$p cudnn" repeat_run $p --attention cudnn; fi
  done
  spawn "fp8 head" repeat_run fp8 --fp8-head
  items_end
  local status=$?
  echo "$(grep -c '^ok' "$work/$stage.items") of $(grep -c . "$work/$stage.items") kinds of run" > $work/bits
  return $status
}

exchange_run() { # build: GPU, CPU, GPU, two steps each, beside six on the GPU
  local p=$1 out="$work/$stage.d/there-$BASHPID"
  limited 15 $gpu/train_gpt_${p}cu $tiny ${REHEARSED_SMALL:--e d2 -t 64 -b 4} -x 6 -n 2 --keep 0 --attention own -o "$out" || return
  rows_of "$out" | cut -f1,3 > "$out.straight"
  rm -f "$out"/*00000004* "$out"/*00000006*
  OMP_NUM_THREADS=1 limited 15 "$gpu/test_cuda_$p" --as-ref -y -o "$out" || return
  rm -f "$out"/*00000006*
  limited 15 $gpu/train_gpt_"${p}"cu -y -o "$out" || return
  rows_of "$out" | cut -f1,3 | paste "$out.straight" - | awk -F'\t' '{ d = $2 - $4; if (d < 0) d = -d; if (d > worst) worst = d; n++ }
    END { printf "%sGPU, CPU, GPU: %d losses, at most %.6f nats from those of the GPU alone\n", n == 6 && worst < 0.02 ? "" : "FAIL: ", n, worst; exit !(n == 6 && worst < 0.02) }'
}
stage_exchange() {
  local p
  items_begin
  for p in fp8 bf16; do spawn "$p" exchange_run $p; done
  items_end
}

sanitizer() { # tool, program...: its own calls are checked by the program itself
  local tool=$1 status
  shift
  limited "${SANITIZER_LIMIT:-45}" compute-sanitizer --tool $tool --report-api-errors no --error-exitcode 9 "$@"
  status=$?
  [ $status = 0 ] || echo "FAIL: $tool: status $status"
  return $status
}
sanitized_steps() { # steps, options...: of the FP8 build, or BUILD's
  local x=$1 out="$work/$stage.d/run-$BASHPID"
  shift
  sanitizer memcheck $gpu/train_gpt_${BUILD:-fp8}cu $tiny -e d1 -t 64 -b 2 -x $x --attention own "$@" -o "$out" || return
  [ "$(rows_of "$out" | wc -l)" = "$x" ] || { echo "FAIL: it made no $x steps"; return 1; }
  echo "no fault in $x steps"
}
has_sanitizer() { has compute-sanitizer || { note "skipped: no compute-sanitizer"; return 1; }; }
stage_memcheck() { # fused steps from graphs, unfused ones with SQNR, scales in blocks, another build
  has_sanitizer || return 77
  items_begin
  spawn "fp8 fused" sanitized_steps 4 --scales-every 0
  spawn "fp8 with SQNR" sanitized_steps 2 --scales-every 1 --sqnr-every 1
  spawn "fp8 in blocks" sanitized_steps 2 --recipe deepseek
  BUILD=bf16 spawn "bf16" sanitized_steps 3
  items_end
}
own_kernels() { # tool: on tests of the file's own kernels alone, as the tools report much of cuBLASLt's that is none of ours
  local t
  has_sanitizer || return 77
  items_begin
  for t in ${TESTS:-encoder layernorm gelu classifier optimizer attention fused}; do
    SANITIZER_LIMIT=110 spawn "$t" sanitizer $1 $gpu/test_cuda_fp8 $t
  done
  items_end
}
stage_racecheck() { own_kernels racecheck; }
stage_initcheck() { own_kernels initcheck; }

losses_run() { # build: 300 steps of d4, the mean of the last 50 beside the CPU's
  local out="$work/$stage.d/d4-$1"
  limited 33 $gpu/train_gpt_"$1"cu $d4 $own -o "$out" || return
  rows_of "$out" | cut -f1,3 > "$work/losses-$1.tsv"
  paste "$work/losses-$1.tsv" "$gpu/data/cpu-$1.tsv" | awk -F'\t' '$1 != $3 { bad = 1 } { g[NR] = $2; c[NR] = $4 }
    END { first = NR > 50 ? NR - 49 : 1; for (i = first; i <= NR; i++) { a += g[i]; b += c[i] } n = NR - first + 1; d = (a - b) / n
      well = NR >= 20 && !bad && d < 0.03 && d > -0.03
      printf "%slast %d of %d steps: GPU %.4f, CPU %.4f, %+.4f nats (at most 0.03)\n", well ? "" : "FAIL: ", n, NR, a / n, b / n, d; exit !well }'
}
stage_losses() {
  local p
  items_begin
  for p in fp8 bf16; do spawn "$p" losses_run $p; done
  items_end
}

# ==== speed
batch_of() { if [ "$1" = 124M ]; then echo "${REHEARSED_B:-16}"; else echo "${REHEARSED_B:-8}"; fi; }
depth_of() { if [ -n "${REHEARSED_T:-}" ]; then echo d1; elif [ "$1" = 124M ]; then echo d12; else echo d48; fi; }
arm_options() { # what an arm adds
  case $1 in
    "fp8 head") echo "--fp8-head ${FP8_OPTIONS:-}" ;;
    "fp8 head logits16") echo "--fp8-head --logits16 ${FP8_OPTIONS:-}" ;;
    "fp8 own attention") echo "--attention own ${FP8_OPTIONS:-}" ;;
    "bf16 own attention") echo "--attention own" ;;
    fp8) echo "${FP8_OPTIONS:-}" ;;
  esac
}
stage_ceilings() {
  local status=0
  $gpu/gpu_cublaslt ceilings --tsv $work/ceilings.tsv --rounds 7 || status=1
  note "$(awk -F'\t' -v copy="$(copy_bandwidth)" '$1 == "product" && $5 == "peak" { t[$9] = $13 }
    END { printf "copy %.0f GB/s; 8192^3: bf16 %.0f, FP8 %.0f TFLOP/s", copy, t["bf16"], t["fp8 fast"] }' $work/ceilings.tsv 2> /dev/null)"
  return $status
}
stage_products() {
  $gpu/gpu_cublaslt products --tsv $work/products.tsv --rounds 5 --seconds 95 || return
  note "$(awk -F'\t' '$1 == "product" && $10 == "SUCCESS" { n++ } END { printf "%d products timed", n }' $work/products.tsv)"
}

time_arm() { # model, arm, order: a row of steps.tsv
  local model=$1 arm=$2 order=$3 batch out status
  batch=$(batch_of "$model") out="$work/step-$model-${arm// /-}-$order"
  rm -rf "$out"
  if [ "$arm" = llm.c ]; then
    # without cuDNN it keeps T x T scores: half the batch, so that 1.5B fits 80 GB and no managed memory is asked for
    if [ "$model" = 1.5B ] && ! ldd $gpu/llmc_train_gpt2cu 2> /dev/null | grep -q cudnn; then batch=$((batch / 2)); fi
    limited 40 $gpu/llmc_train_gpt2cu -i $gpu/data/gpt2.bin -j $gpu/data/gpt2.bin -e "$(depth_of "$model")" -t 1024 -b "$batch" \
      -x $((steps + 1)) -v 0 -s 0 -h 0 -n 0 -r 0 > "$out.out" 2>&1
    status=$?
    grep -aE '^step' "$out.out" | sed -E 's/.*loss ([0-9.]+).*\| *([0-9.]+) ms \|.*/\2 \1/' > "$out.ms"
  else
    limited 40 $gpu/train_gpt_"${arm%% *}"cu $large -e $(depth_of "$model") -b "$batch" -x $((steps + 1)) $(arm_options "$arm") \
      -o "$out" > "$out.out" 2>&1
    status=$?
    rows_of "$out" | awk -F'\t' '{ print $8, $3 }' > "$out.ms"
    grep -m1 '^# attention_by' "$out/log.tsv" 2> /dev/null | cut -f2 > "$work/attention-${arm// /-}"
  fi
  if [ "$(wc -l < "$out.ms")" -lt 3 ]; then
    echo "FAIL $model $arm, run $order: $([ $status = 124 ] && echo "ran past its limit" || echo "status $status"): $(tail -1 "$out.out")"
    return 1
  fi
  tail -n +2 "$out.ms" | cut -d' ' -f1 | sort -n |
    awk -v m="$model" -v a="$arm" -v o="$order" -v tokens=$((batch * ${REHEARSED_TOKENS:-1024})) -v loss="$(tail -1 "$out.ms" | cut -d' ' -f2)" '{ v[NR] = $1 }
      END { ms = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
        printf "%s\t%s\t%s\t%.3f\t%.0f\t%.3f\t%.3f\t%s\n", m, a, o, ms, 1e3 * tokens / ms, v[1], v[NR], loss }' | tee -a $work/steps.tsv
}
stage_steps_of() { # model
  local arms=("fp8" "fp8 head" "bf16") i failed=0 broken=" "
  if uses_cudnn; then arms+=("fp8 own attention"); fi
  if uses_cudnn && [ "$1" = 124M ]; then arms+=("bf16 own attention"); fi
  if [ "$1" = 124M ]; then arms+=("fp8 head logits16"); fi
  if [ -x $gpu/llmc_train_gpt2cu ]; then arms+=("llm.c"); else echo "llm.c: skipped: no binary was built in"; fi
  echo "model${tab}arm${tab}order${tab}ms${tab}tokens/s${tab}least${tab}most${tab}last loss"
  # ABBA: every arm, then every arm backwards; one that failed once is not tried again, since a hang costs its limit
  for ((i = 0; i < ${#arms[@]}; i++)); do time_arm "$1" "${arms[i]}" 1 || { failed=$((failed + 2)) broken="$broken$i "; }; done
  for ((i = ${#arms[@]} - 1; i >= 0; i--)); do
    [[ "$broken" = *" $i "* ]] || time_arm "$1" "${arms[i]}" 2 || failed=$((failed + 1))
  done
  note "$((2 * ${#arms[@]} - failed)) of $((2 * ${#arms[@]})) runs; FP8 over BF16 $(ratio "$1" fp8 bf16), with an FP8 head $(ratio "$1" 'fp8 head' bf16)$([ -x $gpu/llmc_train_gpt2cu ] && echo ", over llm.c $(ratio "$1" 'fp8 head' llm.c)")"
  [ $failed = 0 ]
}
stage_steps_124M() { stage_steps_of 124M; }
stage_steps_1.5B() { stage_steps_of 1.5B; }

# The kernels of steps 6 to 9 of ten: those are graphs without SQNR, as nearly all steps of a run are. gpu_trace.so writes begin and
# duration in nanoseconds and the name of every kernel; AdamW's ends a step.
trace() { # model, arm
  local out="$work/trace-$1-${2// /-}" first=6 last=9
  rm -rf "$out" "$out.tsv"
  CUDA_INJECTION64_PATH=$PWD/$gpu/gpu_trace.so GPU_TRACE_FILE=$out.tsv CUDA_ON_CPU_TRACE=$out.tsv limited 24 $gpu/train_gpt_"${2%% *}"cu $large \
    -e $(depth_of "$1") -b $(batch_of "$1") -x 10 $(arm_options "$2") ${TRACE_OPTIONS:-} -o "$out" > "$out.out" 2>&1 || { echo "FAIL trace of $2: status $?: $(tail -1 "$out.out")"; return 1; }
  [ -s "$out.tsv" ] || { echo "FAIL trace of $2: nothing was traced"; return 1; }
  sort -n "$out.tsv" | awk -F'\t' -v m="$1" -v a="$2" -v first=$first -v last=$last -v OFS='\t' '
    BEGIN { step = 1 }
    step >= first && step <= last { calls[$3]++; us[$3] += $2 / 1e3; if (!begin) begin = $1; end = $1 + $2 }
    $3 ~ /adamw_kernel/ { step++ }
    END { n = last - first + 1
      for (k in us) { sum += us[k]; print m, a, k, calls[k] / n, us[k] / n }
      print m, a, "[gaps between kernels]", 0, ((end - begin) / 1e3 - sum) / n
      if (step != 11) print "steps", step - 1 > "/dev/stderr" }' > "$out.rows" 2> "$out.bad"
  if [ -s "$out.bad" ]; then echo "FAIL trace of $2: expected 10 steps, found $(cat "$out.bad")"; return 1; fi
  if grep -qE 'sqnr|amax_kernel|scale_choose' "$out.rows" && [[ "$2" = fp8* ]] && [[ "$2" != *head* ]]; then
    echo "FAIL trace of $2: these are not the steps that train: $(grep -oE 'sqnr_kernel|amax_kernel|scale_choose_kernel' "$out.rows" | sort -u | tr '\n' ' ')"
    return 1
  fi
  cat "$out.rows" >> $work/kernels.tsv
  echo "a step of $1 $2, by kernel, the longest:"
  sort -t"$tab" -k5 -rn "$out.rows" | head -14 | awk -F'\t' '{ printf "  %8.1f us  %5.1f calls  %s\n", $5, $4, substr($3, 1, 110) }'
}
stage_trace_of() { # model, arms...
  local model=$1 arm failed=0 n=0
  shift
  [ -f $gpu/gpu_trace.so ] || { note "skipped: no gpu_trace.so"; return 77; }
  for arm in "$@"; do n=$((n + 1)); trace "$model" "$arm" || failed=$((failed + 1)); done
  note "$((n - failed)) of $n traced, steps 6 to 9"
  [ $failed = 0 ]
}
stage_trace_124M() { stage_trace_of 124M "fp8" "bf16"; }
stage_trace_1.5B() { stage_trace_of 1.5B "fp8" "bf16"; }

stage_peers() {
  local peers
  has "$python" || { note "skipped: no $python"; return 77; }
  $python -u dev/bench/gpu_peers.py --models 124M --arms torch --ours $gpu/train_gpt_fp8cu --options "--fp8-head $own ${FP8_OPTIONS:-}" \
    --data $gpu/data/gpt2.bin --steps "$steps" --limit 80 --seconds 100 --tsv $work/peers.tsv || { note "gpu_peers.py: status $?"; return 1; }
  peers=$(awk -F'\t' '$2 != "ours" { k = $1 " " $2; if (!(k in s)) { s[k] = 1; n++ } } END { print n + 0 }' $work/peers.tsv)
  if [ "$peers" = 0 ] && grep -qE 'failed, status|past its limit' "$work/$stage.log"; then note "every peer failed"; return 1; fi
  if [ "$peers" = 0 ]; then note "skipped: no peer is installed"; return 77; fi
  note "$peers peers timed"
}

# ==== depth
# Memory traffic by ncu of the second of two steps: a graph, fused. The end of a step is AdamW's kernel.
stage_ncu() {
  has ncu || { note "skipped: no ncu"; return 77; }
  local metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum # one pass over each kernel
  rm -rf $work/ncu
  limited 100 ncu --clock-control none --print-units base --csv --page raw --metrics $metrics $gpu/train_gpt_fp8cu $large -e $(depth_of 124M) -b $(batch_of 124M) -x 2 \
    --scales-every 0 --fp8-head ${FP8_OPTIONS:-} -o $work/ncu > $work/ncu.csv 2>&1 || {
    note "ncu: status $?: $(grep -aE '==(ERROR|WARNING)==' $work/ncu.csv | head -1)"
    return 1
  }
  $python - $work/ncu.csv > $work/ncu.tsv << 'PYTHON' && note "$(wc -l < $work/ncu.tsv) kernels counted, of step 2"
import csv, sys
rows, step = {}, 1
with open(sys.argv[1], errors="replace") as f:
    lines = [line for line in f if line.startswith('"')]
for r in csv.DictReader(lines):
    try: ns, read, written = (float(r[k].replace(",", "")) for k in ("gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum"))
    except (KeyError, ValueError): continue  # the line of units
    if step == 2:
        t = rows.setdefault(r["Kernel Name"], [0, 0.0, 0.0])
        t[0] += 1; t[1] += ns; t[2] += read + written
    step += "adamw_kernel" in r["Kernel Name"]
if step != 3: sys.exit(f"expected two steps, found {step - 1}")
for name, (calls, ns, volume) in sorted(rows.items(), key=lambda x: -x[1][1]):
    print(f"{name}\t{calls}\t{ns / 1e3:.1f}\t{volume / 1e6:.1f}\t{volume / ns if ns else 0:.0f}")
PYTHON
}

# ==== long: GPT-2 124M on novels, FP8 and BF16, two seeds, validation curves. As many steps as the time allows, the same for all.
stage_train() {
  local seconds ms count run p seed
  if [ ! -s $long/train.bin ]; then
    [ -s $long/train.bin.xz ] || { note "skipped: no $long; --build makes it where the novels are, take it along"; return 77; }
    $python -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' $long/train.bin.xz $long/train.bin || return
  fi
  local options="-i $long/train.bin -j $long/val.bin ${REHEARSED_LONG:--e d12 -t 1024 -b 16 --val-rows 64 -u 200} -s 0 -n 0 $own"
  ms=0
  for p in fp8 bf16; do # the slower one decides how many steps there are
    rm -rf $work/long-probe
    limited 40 $gpu/train_gpt_${p}cu $options -v 0 -x 25 -o $work/long-probe > $work/long-probe.out 2>&1 || { tail -3 $work/long-probe.out; return 1; }
    ms=$(rows_of $work/long-probe | tail -15 | cut -f8 | median | awk -v m="$ms" '{ print ($1 > m ? $1 : m) }')
  done
  seconds=$(($(cat "$work/$stage.limit") - SECONDS))
  count=$(awk -v ms="$ms" -v s="$seconds" -v most="${LONG_STEPS:-3000}" 'BEGIN { n = int((s / 4 - 10) * 1000 / (1.05 * ms)); if (n > most) n = most; print (n < 10 ? 10 : n) }')
  echo "$count steps a run: $ms ms a step of the slower build, $seconds s left"
  while sleep 20; do long_rows; publish long; done > /dev/null 2>&1 & # a call that is cut off leaves the rows so far
  local keeper=$!
  for run in fp8:1 bf16:1 bf16:2 fp8:2; do
    p=${run%:*} seed=${run#*:}
    limited $((seconds / 4)) $gpu/train_gpt_${p}cu $options -v $((count / 20 > 0 ? count / 20 : 1)) -x "$count" --seed $seed --data-seed $seed -o $work/long-$p-$seed > $work/long-$p-$seed.out 2>&1 ||
      echo "FAIL $p, seed $seed: status $?: $(tail -1 $work/long-$p-$seed.out)"
    long_rows
    awk -F'\t' -v p=$p -v s=$seed '$1 == p && $2 == s { step = $3; loss = $4 } END { printf "%s, seed %s: validation %s after %s steps\n", p, s, loss, step }' $work/long.tsv
  done
  kill $keeper 2> /dev/null
  note "$(long_gap)"
  ! grep -q '^FAIL' "$work/$stage.log"
}
long_rows() { # validations of all runs so far: build, seed, step, loss
  local run
  for run in fp8-1 bf16-1 bf16-2 fp8-2; do
    rows_of $work/long-$run | awk -F'\t' -v OFS='\t' -v p=${run%-*} -v s=${run#*-} '$4 != "-" { print p, s, $1, $4 }'
  done > $work/long.rows
  mv $work/long.rows $work/long.tsv
}
long_gap() { # the last validation both have, FP8 - BF16 by seed
  awk -F'\t' '{ v[$1, $2, $3] = $4; if ($1 == "fp8") step[$2, $3] = $3 }
    END { for (s = 1; s <= 2; s++) { best = 0; for (k in step) { split(k, f, SUBSEP); if (f[1] == s && (("bf16", s, f[2]) in v) && f[2] + 0 > best) best = f[2] + 0 }
      if (best) printf "%sseed %d after %d steps: FP8 %.4f, BF16 %.4f, %+.4f nats a token", (n++ ? "; " : ""), s, best, v["fp8", s, best], v["bf16", s, best], v["fp8", s, best] - v["bf16", s, best] } }' $work/long.tsv
}

# ==== the report =====================================================================================================
median() { sort -n | awk '{ v[NR] = $1 } END { if (NR) print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
ratio() { # model, arm, other: tokens/s of one over the other's, from steps.tsv
  awk -F'\t' -v m="$1" -v a="$2" -v b="$3" '$1 == m { n[$2]++; s[$2] += $5 }
    END { if (n[a] && n[b]) printf "%.3f", s[a] / n[a] / (s[b] / n[b]) }' $work/steps.tsv 2> /dev/null
}
copy_bandwidth() { # GB/s, the best of the buffers that no cache holds
  awk -F'\t' '$1 == "bandwidth" && $3 == "copy" && $2 + 0 >= 2^28 && $4 + 0 > c { c = $4 + 0 } END { print c + 0 }' $work/ceilings.tsv 2> /dev/null
}
report_steps() {
  echo "T=1024, B=16 at 124M and 8 at 1.5B, $steps steps a run after a first that is left out; runs in ABBA order; medians of a run's steps."
  echo "Attention: FP8 by $(cat $work/attention-fp8 2> /dev/null || echo '?'), BF16 by $(cat $work/attention-bf16 2> /dev/null || echo '?')."
  echo
  echo "| model | arm | ms a step, first and second run | tokens/s | over BF16 | over llm.c | last loss |"
  echo "|---|---|---|---|---|---|---|"
  awk -F'\t' '{ k = $1 "\t" $2; if (!(k in n)) order[++keys] = k; n[k]++; ms[k] = ms[k] (n[k] > 1 ? ", " : "") $4; s[k] += $5; loss[k] = $8 }
    END { for (i = 1; i <= keys; i++) { k = order[i]; split(k, f, "\t"); rate = s[k] / n[k]; b = f[1] "\tbf16"; c = f[1] "\tllm.c"
      over_bf16 = b in n ? sprintf("%.2f", rate / (s[b] / n[b])) : ""; over_llmc = c in n ? sprintf("%.2f", rate / (s[c] / n[c])) : ""
      printf "| %s | %s | %s | %.0f | %s | %s | %s |\n", f[1], f[2], ms[k], rate, over_bf16, over_llmc, loss[k] } }' $work/steps.tsv
}
report_peers() {
  echo "| model | peer (ours: FP8 with an FP8 head, run around each) | tokens/s | ours / peer |"
  echo "|---|---|---|---|"
  awk -F'\t' '$2 == "ours" { o[$1] += $5; m[$1]++; next } { k = $1 "\t" $2; if (!(k in n)) order[++keys] = k; n[k]++; s[k] += $5 }
    END { for (i = 1; i <= keys; i++) { k = order[i]; split(k, f, "\t"); rate = s[k] / n[k]
      printf "| %s | %s | %.0f | %s |\n", f[1], f[2], rate, m[f[1]] ? sprintf("%.2f", o[f[1]] / m[f[1]] / rate) : "" } }' $work/peers.tsv
}
report_ncu() {
  echo "| kernel | calls | us | MB | GB/s | of the measured copy |"
  echo "|---|---|---|---|---|---|"
  awk -F'\t' -v copy="$(copy_bandwidth)" 'NR <= 30 { share = copy ? sprintf("%.0f%%", 100 * $5 / copy) : ""
    printf "| %s | %s | %s | %s | %s | %s |\n", substr($1, 1, 80), $2, $3, $4, $5, share }' $work/ncu.tsv
}
report_long() {
  long_gap
  printf '\n\n| seed | step | FP8 | BF16 | FP8 - BF16, nats a token |\n|---|---|---|---|---|\n'
  awk -F'\t' '{ v[$1, $2, $3] = $4 } $1 == "fp8" { order[++n] = $2 SUBSEP $3 }
    END { for (i = 1; i <= n; i++) { split(order[i], f, SUBSEP); b = v["bf16", f[1], f[2]]; if (b != "") printf "| %s | %s | %.4f | %.4f | %+.4f |\n", f[1], f[2], v["fp8", f[1], f[2]], b, v["fp8", f[1], f[2]] - b } }' $work/long.tsv
}
section() { # title, file that must hold something, command that prints
  [ -s "$2" ] || return 0
  printf '\n## %s\n\n' "$1"
  "${@:3}"
}
show_log() { echo '```' && cut -c1-200 "$1" && echo '```'; }
report_floors() { # milliseconds by kind of kernel, from the middle of a run, beside their floors
  $python dev/bench/roofline.py --measured $work --markdown 2>&1 | sed -n '/^ceilings measured/p; /^Peaks/p; /^| model | arm | us a token/,$p; /^no measured steps/,$p'
}
report() {
  local name
  echo "# What a GPU showed"
  echo
  echo "Written by \`dev/gpu_check.sh\`: $(cat $work/card 2> /dev/null || echo 'an unknown card'); $(cat $work/VERSION 2> /dev/null || echo 'an unknown build'); $(date -u +%Y-%m-%d)."
  echo
  echo "| call | stage | result | seconds | limit | |"
  echo "|---|---|---|---|---|---|"
  for name in smoke truth speed depth long; do
    [ -s $work/stages-$name.tsv ] && awk -F'\t' -v c=$name '{ printf "| %s | %s | %s | %s | %s | %s |\n", c, $1, $2, $3, $4, $5 }' $work/stages-$name.tsv
  done
  if cat $work/*.items 2> /dev/null | grep -q '^FAIL'; then
    printf '\n## What failed\n\n```\n' && grep -h '^FAIL' $work/*.items | cut -c1-300 && echo '```'
  fi
  section "Whole steps" $work/steps.tsv report_steps
  if grep -qv "${tab}ours${tab}" $work/peers.tsv 2> /dev/null; then section "Beside others" $work/peers.tsv report_peers; fi
  section "Where a step's time goes, beside its floor" $work/kernels.tsv report_floors
  section "Memory traffic, counted by ncu (124M, FP8 with an FP8 head, step 2)" $work/ncu.tsv report_ncu
  section "GPT-2 124M on novels" $work/long.tsv report_long
  for name in versions kernels steps tests repeats exchange memcheck racecheck initcheck losses ceilings trace-124M trace-1.5B matrix products; do
    section "$name" "$work/$name.log" show_log "$work/$name.log"
  done
}
publish() { # call; after every stage, so that a call that is cut off leaves what it has
  report > "$work/RESULTS_GPU.md"
  cp "$work/RESULTS_GPU.md" "$results"
  [ -n "${OUT:-}" ] && [ -d "$OUT" ] || return 0
  cp "$work/RESULTS_GPU.md" "$OUT/$1.md"
  cat "$work"/*.log > "$OUT/$1.log"
  (cd "$work" && tar -czf - --exclude='*.bin' ./*.tsv ./*.log ./*.note ./*.items ./card ./VERSION ./attention-* ./bits ./*.out ./ncu.csv 2> /dev/null) > "$OUT/$1.tgz"
}

# ==== a call =========================================================================================================
run_stage() { # call, stage, limit, when the call ends: in a process group of its own, its output shown as it comes
  local call=$1 limit=$3 left=$(($4 - SECONDS - 3)) begin=$SECONDS status result
  stage=$2
  if [ -n "${ONLY:-}" ] && [[ " $ONLY " != *" $stage "* ]]; then return; fi
  printf '\n==== %s %s (at %d s)\n' "$call" "$stage" "$SECONDS"
  rm -f "$work/$stage.note" "$work/$stage.items" "$work/$stage.failed.log"
  sed -i "/^$stage\t/d" "$work/stages-$call.tsv"
  results_drop "$stage"
  if [ "$left" -lt 4 ]; then
    printf '%s\tnot run\t0\t%s\tno time was left\n' "$stage" "$limit" >> "$work/stages-$call.tsv"
    echo "not run: no time is left"
    return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  echo "$limit" > "$work/$stage.limit"
  : > "$work/$stage.log"
  GPU_STAGE=$stage timeout -k 3 "$limit" "$self" --stage "$stage" > "$work/$stage.log" 2>&1 < /dev/null &
  local pid=$!
  stage_group=$pid
  tail -n +1 -s 0.2 -f --pid=$pid "$work/$stage.log"
  wait $pid
  status=$?
  kill -KILL -- -$pid 2> /dev/null # what outlived it
  stage_group=""
  case $status in
    0) result=ok ;;
    77) result=skipped ;;
    124 | 137) result=$([ $((SECONDS - begin)) -ge $((limit - 1)) ] && echo "**timed out**" || echo "**failed**, killed") ;;
    *) result="**failed**" ;;
  esac
  printf '%s\t%s\t%s\t%s\t%s\n' "$stage" "$result" $((SECONDS - begin)) "$limit" \
    "$(cat "$work/$stage.note" 2> /dev/null || tail -1 "$work/$stage.log" | tr '\t|' '  ' | cut -c1-160)" >> "$work/stages-$call.tsv"
  echo "---- $stage: $result, $((SECONDS - begin)) s"
  publish "$call"
}
results_drop() { # the figures of a stage that begins again
  case $1 in
    ceilings | matrix | peers | products | ncu) rm -f "$work/$1.tsv" ;;
    train) rm -rf "$work/long.tsv" "$work"/long-* ;;
    steps-*) [ ! -f $work/steps.tsv ] || sed -i "/^${1#*-}\t/d" $work/steps.tsv ;;
    trace-*) [ ! -f $work/kernels.tsv ] || sed -i "/^${1#*-}\t/d" $work/kernels.tsv ;;
  esac
}
# Where libraries are that our programs do not find by themselves, or open later (cuDNN, and the CUDA runtime for its frontend).
libraries_find() {
  local candidates="$cuda/lib64:$cuda/lib:$cuda/extras/CUPTI/lib64:$cuda/targets/x86_64-linux/lib"
  if has "$python"; then
    candidates="$candidates:$($python -c 'import glob, sysconfig
print(":".join(sorted(glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/*/lib"))))' 2> /dev/null)"
  fi
  export LIBRARY_PATH_BEFORE=${LD_LIBRARY_PATH:-}
  export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$candidates"
  for b in gpu_cublaslt train_gpt_fp8cu test_cuda_fp8 llmc_train_gpt2cu gpu_trace.so; do
    ldd "$gpu/$b" 2> /dev/null | awk -v b=$b '/not found/ { print b ": not found: " $1 }'
  done
}
gpu_there() {
  if has nvidia-smi; then nvidia-smi -L 2> /dev/null | grep -q '^GPU'; else [ -e /dev/nvidia0 ]; fi
}
call() { # name
  local entry all
  all=$(limits "$1")
  if ! gpu_there; then
    echo "gpu_check: no GPU on this machine; nothing is run ($results stays as it is; --build and --rehearse work without one)"
    return 0
  fi
  mkdir -p "$work"
  touch "$work/stages-$1.tsv"
  stage_group=""
  trap '[ -z "$stage_group" ] || kill -KILL -- -$stage_group 2> /dev/null; exit 143' TERM INT HUP
  case $(cat $gpu/VERSION) in *sources*) [[ "$(cat $gpu/VERSION)" = *"sources $(fingerprint)"* ]] || echo "WARNING: $gpu was built from other sources than these" ;; esac
  cp $gpu/VERSION $work/VERSION
  libraries_find
  for entry in ${all#* }; do run_stage "$1" "${entry%:*}" "${entry#*:}" "${all%% *}"; done
  publish "$1"
  printf '\n==== %s: %d s\n\n' "$1" "$SECONDS"
  for entry in ${all#* }; do [ -f "$work/${entry%:*}.items" ] && grep -h '^FAIL' "$work/${entry%:*}.items"; done
  awk -F'\t' '{ printf "%-12s %-14s %4s s  %s\n", $1, $2, $3, $5 }' "$work/stages-$1.tsv"
  echo "next: $(next_call "$1")"
  ! grep -q 'failed\|timed out\|not run' "$work/stages-$1.tsv"
}

case ${1:-} in
  --build) build "${@:2}" ;;
  --stage)
    stage=$2
    stage_name=${2//-/_}
    "stage_$stage_name" ;;
  --collect)
    for archive in "${2:?--collect DIR}"/*.tgz; do
      [ -e "$archive" ] || { echo "gpu_check: there is no archive in $2"; exit 2; }
      mkdir -p $work && tar -xzf "$archive" -C $work --exclude='./trace-*' && echo "took $archive"
    done
    report > $work/RESULTS_GPU.md && cp $work/RESULTS_GPU.md $results && echo "wrote $results" ;;
  --rehearse) dev/gpu_rehearse.sh ;;
  --limits) limits "$2" ;;
  --help | "") sed -n '3,/^set -u/p' "$self" | sed '$d; s/^# \{0,1\}//' ;;
  *)
    limits "$1" > /dev/null || { echo "gpu_check: unknown call '$1'; see --help"; exit 2; }
    call "$1" ;;
esac
