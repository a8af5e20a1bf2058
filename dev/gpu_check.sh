#!/usr/bin/env bash
# Everything that only a GPU can show, in one command of under nine minutes: does it run, are its bits right, how fast is it.
#
#   dev/gpu_check.sh --build [--llmc PATH]   anywhere with nvcc: binaries for GPU_ARCH (sm_90) and small data, to build/gpu
#   dev/gpu_check.sh                         on a machine with a GPU: runs the stages below, writes dev/bench/RESULTS_GPU.md
#
# Where a GPU is to be had for minutes only: build elsewhere, take the tree and build/gpu (ignored by git; the size is
# printed) along, and run `dev/gpu_check.sh` with a limit of ten minutes. Where OUT names a folder, all results are also copied
# there after every stage, so that a run that is cut off leaves what it has. Nothing is installed, nothing is fetched, and no
# setting of the card is changed. Binaries that do not start there are built there, if it has nvcc.
#
# Stages, each with a time limit; one that fails or runs over is marked so, and the next one follows:
#   start      versions; one tiny step of all four builds
#   matrix     which products cuBLASLt offers, runs, and gets right
#   tests      bytes and layers against the C file; the same bits from two runs, and across a resume
#   memcheck   compute-sanitizer on a d1 step
#   ceilings   memory bandwidth, products by shape, the kernels of a step
#   steps      whole steps, 124M then 1.5B: FP8, FP8 with an FP8 head, BF16, llm.c, in ABBA order
#   peers      PyTorch, torchao, Transformer Engine (dev/bench/gpu_peers.py)
#   racecheck, initcheck, ncu
#
# Environment: BUDGET=520 (seconds in all), STEPS=20 (a timed run), ONLY="start tests" (these stages), FP8_OPTIONS (more options
# for the FP8 arms, e.g. --tune), JOBS=1 (compilers at once), GPU_ARCH=sm_90, PYTHON=python3, MAKE_OPTIONS (for `make cuda`, e.g.
# USE_CUDNN=1). llm.c's train_gpt2cu is taken as built elsewhere.
set -u
export LC_ALL=C
cd "$(dirname "$0")/.." || exit 1
self=$PWD/dev/gpu_check.sh
arch=${GPU_ARCH:-sm_90} python=${PYTHON:-python3} steps=${STEPS:-20} budget=${BUDGET:-520}
gpu=build/gpu work=build/gpu/run results=dev/bench/RESULTS_GPU.md
cuda=${CUDA_HOME:-/usr/local/cuda}
PATH=$PATH:$cuda/bin
precisions="fp8 fp16 bf16 fp32"
has() { command -v "$1" > /dev/null 2>&1; }
tab=$(printf '\t')

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
compile() { # name, command...: says what failed, and goes on
  local name=$1
  shift
  if "$@" > "$gpu/$name.build" 2>&1; then echo "built $name"; rm -f "$gpu/$name.build"; else
    echo "FAILED to build $name: $(grep -m1 -iE 'error|cannot|undefined|No such' "$gpu/$name.build" || tail -1 "$gpu/$name.build")"
    return 1
  fi
}
built() { # counts a build in the background or not
  if [ "${JOBS:-1}" -gt 1 ]; then compile "$@" || touch $gpu/failed & else compile "$@" || touch $gpu/failed; fi
}
build() {
  local nvcc_flags p precision=0 llmc="" text=data/tales.d/train.txt by_make="" reference_flags built_mib tracked_mib
  if [ "${1:-}" = --llmc ]; then llmc=${2:-}; fi
  if ! has nvcc; then echo "gpu_check: no nvcc on this machine; nothing is built"; return 0; fi
  mkdir -p $gpu/data
  rm -f $gpu/failed $gpu/*.build $gpu/train_gpt_*cu $gpu/test_cuda_* $gpu/gpu_* # nothing stale stays when a build fails
  nvcc_flags="-O3 -std=c++17 -arch=$arch -fmad=false -ftz=true -prec-div=true -prec-sqrt=true -Xlinker -rpath=$cuda/lib64"
  # the C file, which the tests compare with: for any x86-64 with AVX2, as it may run on another machine than this one
  reference_flags="-std=gnu11 -O2 $([ "$(uname -m)" = x86_64 ] && echo -march=x86-64-v3) -ffp-contract=off -fopenmp"
  # shellcheck disable=SC2086
  if [ -f dev/cuda/reference.c ]; then
    rm -rf $gpu/obj
    mkdir -p $gpu/obj
    for p in $precisions; do
      built main_$p cc $reference_flags -DPRECISION=$precision -DREFERENCE_MAIN=ref_main_$p -c dev/cuda/reference.c -o $gpu/obj/main_$p.o
      built reference_$p cc $reference_flags -DPRECISION=$precision -c dev/cuda/reference.c -o $gpu/obj/reference_$p.o
      precision=$((precision + 1))
    done
    wait
    precision=0
  fi
  # shellcheck disable=SC2086
  if grep -qE '^cuda *:' Makefile && compile cuda make cuda GPU_ARCH="$arch" ${MAKE_OPTIONS:-}; then
    for p in $precisions; do cp train_gpt_${p}cu $gpu/ || touch $gpu/failed; done
    by_make=yes
    if has cuobjdump && ! cuobjdump --list-elf $gpu/train_gpt_fp8cu | grep -q "$arch"; then
      echo "FAILED: make cuda made no code for $arch; compiling without it"
      by_make=""
    fi
  fi
  # shellcheck disable=SC2086
  for p in $precisions; do
    if [ -f train_gpt_fp8.cu ] && [ -z "$by_make" ]; then
      built train_gpt_${p}cu nvcc $nvcc_flags -DPRECISION=$precision -DCOMMIT="\"$(git describe --always --dirty 2> /dev/null || echo unknown)\"" \
        train_gpt_fp8.cu -o $gpu/train_gpt_${p}cu -lcublasLt
    fi
    if [ -f dev/cuda/test_cuda.cu ]; then
      built test_cuda_$p nvcc $nvcc_flags -Xcompiler -fopenmp -DPRECISION=$precision dev/cuda/test_cuda.cu -o $gpu/test_cuda_$p \
        $gpu/obj/reference_$p.o $gpu/obj/main_*.o -lcublasLt
    fi
    precision=$((precision + 1))
  done
  [ -f train_gpt_fp8.cu ] || { echo "FAILED to build the trainers: there is no train_gpt_fp8.cu"; touch $gpu/failed; }
  built gpu_cublaslt nvcc -O3 -std=c++17 -arch="$arch" -Xlinker -rpath="$cuda/lib64" dev/bench/gpu_cublaslt.cu -lcublasLt -o $gpu/gpu_cublaslt
  built gpu_trace.so g++ -O2 -std=c++17 -shared -fPIC -I"$cuda/include" -I"$cuda/extras/CUPTI/include" dev/bench/gpu_trace.cpp \
    -L"$cuda/lib64" -L"$cuda/lib" -L"$cuda/extras/CUPTI/lib64" -lcupti -o $gpu/gpu_trace.so
  wait
  if [ -n "$llmc" ]; then
    if [ -x "$llmc" ]; then cp "$llmc" $gpu/llmc_train_gpt2cu && echo "took llm.c from $llmc"; else
      echo "FAILED to take llm.c: $llmc is no program"
      touch $gpu/failed
    fi
  fi
  # Data: tiny Shakespeare in GPT-2's tokens where it lies beside the repository, else pairs of the corpus's bytes as tokens,
  # all below 32,640; and a text whose bytes are the tokens, for tiny runs.
  if [ ! -s $text ] && has cc; then
    cc -O2 data/tales.c -o $gpu/tales && $gpu/tales --out $gpu/tales.d > /dev/null && text=$gpu/tales.d/train.txt
  fi
  if [ -s $text ]; then head -c 1000000 $text > $gpu/data/tales.txt; fi
  if [ -s ../shared/data/tinyshakespeare.gpt2.u16 ]; then shard ../shared/data/tinyshakespeare.gpt2.u16 > $gpu/data/gpt2.bin
  elif [ -s $text ]; then
    head -c 800000 $text > $gpu/tokens
    shard $gpu/tokens > $gpu/data/gpt2.bin
  elif [ ! -s $gpu/data/gpt2.bin ]; then
    echo "FAILED to make data: neither a corpus nor a C compiler"
    touch $gpu/failed
  fi
  rm -rf $gpu/tokens $gpu/tales $gpu/tales.d $gpu/obj
  echo "commit $(git describe --always --dirty 2> /dev/null || echo unknown), $arch, $(nvcc --version | grep -oE 'release [0-9.]+')" > $gpu/VERSION
  ls -la $gpu $gpu/data
  built_mib=$(du -sm --exclude=run $gpu | cut -f1)
  tracked_mib=$(git ls-files -z 2> /dev/null | xargs -0 -r du -cm 2> /dev/null | tail -1 | cut -f1)
  echo "$built_mib MiB in $gpu, $((built_mib + ${tracked_mib:-0})) MiB with the tracked files"
  if [ -e $gpu/failed ]; then rm -f $gpu/failed; return 1; fi
}

# ==== stages =========================================================================================================
note() { echo "$*" > "$work/$stage.note"; echo "$*"; }
median() { sort -n | awk '{ v[NR] = $1 } END { if (NR) print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
tiny="-i $gpu/data/tales.txt -j $gpu/data/tales.txt -m 1 -v 0 -s 0"
large="-i $gpu/data/gpt2.bin -j $gpu/data/gpt2.bin -m 1 -v 0 -s 0 -n 0 -t 1024"
limited() { timeout --foreground -k 3 "$@"; } # stays in the stage's process group, so that the stage's limit ends it too

stage_start() {
  local p ok=0 out
  if has nvidia-smi; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,temperature.gpu --format=csv,noheader
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -1 > $work/card
    nvidia-smi | grep -oE 'CUDA Version: [0-9.]+'
  fi
  cat $gpu/VERSION 2> /dev/null
  nproc && uname -r
  for p in $precisions; do
    if ! out=$(limited 10 $gpu/train_gpt_"$p"cu --version 2>&1); then echo "$p: $out"; continue; fi
    echo "$out"
    rm -rf "$work/tiny-$p"
    # shellcheck disable=SC2086
    if limited 20 $gpu/train_gpt_${p}cu $tiny -e d1 -t 64 -b 2 -x 2 -n 0 -o "$work/tiny-$p" > "$work/tiny-$p.out" 2>&1; then
      ok=$((ok + 1))
      grep -v '^#' "$work/tiny-$p/log.tsv" | tail -1
    else
      echo "$p: a tiny step failed, status $?:"
      tail -5 "$work/tiny-$p.out"
    fi
  done
  note "$ok of 4 builds make a step"
  [ $ok = 4 ]
}

stage_matrix() {
  $gpu/gpu_cublaslt matrix --tsv $work/matrix.tsv || { note "stopped after $(grep -c '^matrix' $work/matrix.tsv) combinations"; return 1; }
  note "$(awk -F'\t' '$1 == "matrix" && $2 != "a" { n++; offered += $11 == "SUCCESS"; ran += $12 == "SUCCESS" }
    END { printf "%d combinations, %d ran, %d offered and then refused", n, ran, offered - ran }' $work/matrix.tsv)"
}

bits() { # the directory of a run: hashes of its log but for times, its scales, its weights and moments
  grep -v '^#' "$1/log.tsv" 2> /dev/null | cut -f1-7 | sha256sum | cut -c1-16
  local f
  for f in "$1/scales.tsv" "$1/model_00000020.bin" "$1/state_00000020.bin"; do
    if [ -f "$f" ]; then sha256sum < "$f" | cut -c1-16; else echo "-"; fi
  done
}
stage_tests() {
  local p failed=0 tests=0 same=0 wanted=0 d options line
  options="$tiny -e d4 -t 256 -b 4 -x 20 -n 10 --keep 0"
  for p in fp8 bf16; do # first, as these are the quickest
    for d in one two; do
      rm -rf "$work/bits-$p-$d"
      # shellcheck disable=SC2086
      limited 40 $gpu/train_gpt_${p}cu $options -o "$work/bits-$p-$d" > "$work/bits-$p-$d.out" 2>&1 ||
        echo "$p, run $d: status $?: $(tail -1 "$work/bits-$p-$d.out")"
    done
    rm -rf "$work/bits-$p-resumed"
    cp -r "$work/bits-$p-one" "$work/bits-$p-resumed" && rm -f "$work/bits-$p-resumed"/*00000020*
    limited 40 $gpu/train_gpt_${p}cu -y -o "$work/bits-$p-resumed" > "$work/bits-$p-resumed.out" 2>&1 ||
      echo "$p, resumed: status $?: $(tail -1 "$work/bits-$p-resumed.out")"
    for d in two resumed; do
      wanted=$((wanted + 1))
      if [ -f "$work/bits-$p-one/model_00000020.bin" ] && [ "$(bits "$work/bits-$p-one")" = "$(bits "$work/bits-$p-$d")" ]; then
        same=$((same + 1))
        echo "ok   $p, $d: the bits of the first run, $(bits "$work/bits-$p-$d" | tr '\n' ' ')"
      else echo "FAIL $p, $d: other bits than the first run"; fi
    done
    rm -rf "$work"/bits-$p-*/*.bin
  done
  echo "$same of $wanted runs have the bits of the first" > $work/bits
  for p in fp8 bf16 fp16 fp32; do # the most telling first
    [ -x "$gpu/test_cuda_$p" ] || { echo "test_cuda_$p: not built"; failed=$((failed + 1)); continue; }
    echo "== test_cuda_$p"
    if limited 60 "$gpu/test_cuda_$p" > "$work/test_cuda_$p.out" 2>&1; then tests=$((tests + 1)); else
      echo "test_cuda_$p: status $?"
      failed=$((failed + 1))
    fi
    grep -aE 'failed|passed' "$work/test_cuda_$p.out" | tail -20
  done
  line=$(cat "$work"/test_cuda_*.out 2> /dev/null | grep -aoE '[0-9]+ passed' | awk '{ n += $1 } END { print n + 0 }')
  note "$tests of 4 test programs pass ($line tests); $same of $wanted repeated or resumed runs have the same bits"
  [ "$failed" = 0 ] && [ "$same" = "$wanted" ]
}

sanitize() { # tool, build, more options
  has compute-sanitizer || { note "skipped: no compute-sanitizer"; return 77; }
  local out="$work/$1-$2.out" status
  rm -rf "$work/$1-$2"
  # shellcheck disable=SC2086
  compute-sanitizer --tool "$1" --error-exitcode 9 $gpu/train_gpt_"$2"cu $tiny -e d1 -t 64 -b 2 -x 2 -n 0 -o "$work/$1-$2" ${3:-} > "$out" 2>&1
  status=$?
  if [ $status = 0 ] && [ "$(grep -vc '^#' "$work/$1-$2/log.tsv" 2> /dev/null)" != 3 ]; then status=1; fi # it made no two steps
  grep -aE '=========.*(Invalid|Uninitialized|hazard|leak|misaligned|at .*\+0x)' "$out" | head -12
  echo "$2: $(grep -aE 'ERROR SUMMARY|RACECHECK SUMMARY' "$out" | tail -1 | sed 's/=* *//') (status $status)" | tee -a "$work/$stage.lines"
  return $status
}
stage_sanitizer() { # tool, builds
  local p status=0 one
  : > "$work/$stage.lines"
  for p in $2; do
    sanitize "$1" "$p"
    one=$?
    [ $one != 77 ] || return 77
    [ $one = 0 ] || status=$one
  done
  note "$(tr '\n' ';' < "$work/$stage.lines" | sed 's/;$//')"
  return $status
}
stage_memcheck() { stage_sanitizer memcheck "fp8 bf16"; }
stage_racecheck() { stage_sanitizer racecheck "fp8"; }
stage_initcheck() { stage_sanitizer initcheck "fp8"; }

batch_of() { if [ "$1" = 124M ]; then echo 16; else echo 8; fi; }
depth_of() { if [ "$1" = 124M ]; then echo d12; else echo d48; fi; }
arm_options() { # what an arm adds to the FP8 build's options
  case $1 in "fp8 head") echo "--fp8-head ${FP8_OPTIONS:-}" ;; fp8) echo "${FP8_OPTIONS:-}" ;; esac
}
trace() { # model, arm, build: the kernels of a step
  local out="$work/trace-$3" x=10
  [ -f $gpu/gpu_trace.so ] || return 0
  rm -rf "$out" "$out.tsv"
  # shellcheck disable=SC2046,SC2086
  CUDA_INJECTION64_PATH=$PWD/$gpu/gpu_trace.so GPU_TRACE_FILE=$out.tsv limited 25 $gpu/train_gpt_"$3"cu $large -e $(depth_of "$1") \
    -b $(batch_of "$1") -x $x $(arm_options "$2") -o "$out" > "$out.out" 2>&1 || echo "trace of $2: status $?: $(tail -1 "$out.out")"
  [ -s "$out.tsv" ] || { echo "trace of $2: nothing was traced"; return 0; }
  awk -F'\t' -v m="$1" -v a="$2" -v x=$x '{ printf "%s\t%s\t%s\t%.3f\t%.3f\n", m, a, $1, $2 / x, $3 / x }' "$out.tsv" >> $work/kernels.tsv
  echo "kernels of a step, $1 $2, the longest:"
  awk -F'\t' '{ name[NR] = substr($1, 1, 110); us[NR] = $3; sum += $3 }
    END { for (i = 1; i <= NR && i <= 14; i++) printf "  %5.1f%%  %s\n", 100 * us[i] / sum, name[i] }' "$out.tsv"
}
stage_ceilings() {
  local status=0
  $gpu/gpu_cublaslt ceilings --tsv $work/ceilings.tsv --rounds 7 || status=1
  trace 124M "fp8 head" fp8
  trace 124M bf16 bf16
  $gpu/gpu_cublaslt products --tsv $work/ceilings.tsv --rounds 5 --seconds 35 || status=1
  note "$(awk -F'\t' -v copy="$(copy_bandwidth)" '$1 == "product" && $5 == "peak" { t[$9] = $13 }
    END { printf "copy %.0f GB/s; 8192^3: bf16 %.0f, FP8 %.0f TFLOP/s", copy, t["bf16"], t["fp8 fast"] }' $work/ceilings.tsv 2> /dev/null)"
  return $status
}

uses_cudnn() { ldd "$gpu/$1" 2> /dev/null | grep -q cudnn; }
time_arm() { # model, arm, order: a row of steps.tsv
  local model=$1 arm=$2 order=$3 batch out status
  batch=$(batch_of "$model") out="$work/step-$model-${arm// /-}-$order"
  rm -rf "$out"
  if [ "$arm" = llm.c ]; then
    # without cuDNN it keeps T x T scores: half the batch, so that 1.5B fits 80 GB and no managed memory is asked for
    if [ "$model" = 1.5B ] && ! uses_cudnn llmc_train_gpt2cu; then batch=$((batch / 2)); fi
    limited 45 $gpu/llmc_train_gpt2cu -i $gpu/data/gpt2.bin -j $gpu/data/gpt2.bin -e "$(depth_of "$model")" -t 1024 -b "$batch" \
      -x $((steps + 1)) -v 0 -s 0 -h 0 -n 0 -r 0 > "$out.out" 2>&1
    status=$?
    grep -aE '^step' "$out.out" | sed -E 's/.*loss ([0-9.]+).*\| *([0-9.]+) ms \|.*/\2 \1/' > "$out.ms"
  else
    # shellcheck disable=SC2046,SC2086
    limited 45 $gpu/train_gpt_"${arm%% *}"cu $large -e $(depth_of "$model") -b "$batch" -x $((steps + 1)) $(arm_options "$arm") \
      -o "$out" > "$out.out" 2>&1
    status=$?
    { grep -v '^#' "$out/log.tsv" | awk -F'\t' '$1 + 0 { print $8, $3 }'; } > "$out.ms" 2> /dev/null
  fi
  if [ "$(wc -l < "$out.ms")" -lt 2 ]; then
    echo "$model $arm, run $order: $([ $status = 124 ] && echo "ran past its limit" || echo "status $status"): $(tail -1 "$out.out")"
    return 1
  fi
  tail -n +2 "$out.ms" | cut -d' ' -f1 | sort -n |
    awk -v m="$model" -v a="$arm" -v o="$order" -v tokens=$((batch * 1024)) -v loss="$(tail -1 "$out.ms" | cut -d' ' -f2)" '{ v[NR] = $1 }
      END { ms = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
        printf "%s\t%s\t%s\t%.3f\t%.0f\t%.3f\t%.3f\t%s\n", m, a, o, ms, 1e3 * tokens / ms, v[1], v[NR], loss }' | tee -a $work/steps.tsv
}
stage_steps() { # model
  local arms=("fp8" "fp8 head" "bf16") i failed=0
  if [ -x $gpu/llmc_train_gpt2cu ]; then arms+=("llm.c"); else echo "llm.c: skipped: no binary was built in"; fi
  if [ -x $gpu/llmc_train_gpt2cu ]; then
    echo "Attention: ours by $(uses_cudnn train_gpt_fp8cu && echo cuDNN || echo 'our own kernel')," \
      "llm.c's by $(uses_cudnn llmc_train_gpt2cu && echo cuDNN || echo 'its plain kernels, which keep T x T scores')." | tee $work/attention
  fi
  echo "model${tab}arm${tab}order${tab}ms${tab}tokens/s${tab}least${tab}most${tab}last loss"
  local broken=" " # arms that failed once are not tried again: a hang costs its limit
  for ((i = 0; i < ${#arms[@]}; i++)); do time_arm "$1" "${arms[i]}" 1 || { failed=$((failed + 2)) broken="$broken$i "; }; done
  for ((i = ${#arms[@]} - 1; i >= 0; i--)); do
    [[ "$broken" = *" $i "* ]] || time_arm "$1" "${arms[i]}" 2 || failed=$((failed + 1))
  done
  note "$((2 * ${#arms[@]} - failed)) of $((2 * ${#arms[@]})) runs$([ -x $gpu/llmc_train_gpt2cu ] || echo '; llm.c skipped')"
  [ $failed = 0 ]
}
stage_steps_124M() { stage_steps 124M; }
stage_steps_1.5B() { stage_steps 1.5B; }

stage_peers() {
  local peers
  has "$python" || { note "skipped: no $python"; return 77; }
  $python -u dev/bench/gpu_peers.py --models 124M,1.5B --arms torch,tensorwise,rowwise,te --ours $gpu/train_gpt_fp8cu \
    --options "--fp8-head ${FP8_OPTIONS:-}" --data $gpu/data/gpt2.bin --steps "$steps" --limit 75 --seconds "$(($(cat "$work/$stage.limit") - 5))" --tsv $work/peers.tsv
  peers=$(awk -F'\t' '$2 != "ours" { k = $1 " " $2; if (!(k in s)) { s[k] = 1; n++ } } END { print n + 0 }' $work/peers.tsv)
  if [ "$peers" = 0 ] && grep -qE 'failed, status|past its limit' "$work/$stage.log"; then note "every peer failed"; return 1; fi
  if [ "$peers" = 0 ]; then note "skipped: no peer is installed"; return 77; fi
  note "$peers peers timed"
}

stage_ncu() {
  has ncu || { note "skipped: no ncu"; return 77; }
  local metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,sm__throughput.avg.pct_of_peak_sustained_elapsed
  rm -rf $work/ncu
  # shellcheck disable=SC2086
  ncu --clock-control none --print-units base --csv --page raw --metrics $metrics --launch-count 500 $gpu/train_gpt_fp8cu $large -e d12 -b 16 -x 1 \
    --fp8-head ${FP8_OPTIONS:-} -o $work/ncu > $work/ncu.csv 2>&1 || {
    note "ncu: status $?: $(grep -aE '==(ERROR|WARNING)==' $work/ncu.csv | head -1)"
    return 1
  }
  has "$python" || { note "counted; no $python to add it up"; return 0; }
  $python - $work/ncu.csv > $work/ncu.tsv << 'PYTHON' && note "$(wc -l < $work/ncu.tsv) kernels counted"
import csv, sys
rows = {}
with open(sys.argv[1], errors="replace") as f:
    lines = [line for line in f if line.startswith('"')]
for r in csv.DictReader(lines):
    try: ns, read, written = (float(r[k].replace(",", "")) for k in ("gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum"))
    except (KeyError, ValueError): continue  # the line of units
    t = rows.setdefault(r["Kernel Name"], [0, 0.0, 0.0])
    t[0] += 1; t[1] += ns; t[2] += read + written
for name, (calls, ns, volume) in sorted(rows.items(), key=lambda x: -x[1][1]):
    print(f"{name}\t{calls}\t{ns / 1e3:.1f}\t{volume / 1e6:.1f}\t{volume / ns if ns else 0:.0f}")
PYTHON
}

# ==== the report =====================================================================================================
ratio() { # model, arm, other: tokens/s of one over the other's, from steps.tsv
  awk -F'\t' -v m="$1" -v a="$2" -v b="$3" '$1 == m { n[$2]++; s[$2] += $5 }
    END { if (n[a] && n[b]) printf "%.3f", s[a] / n[a] / (s[b] / n[b]) }' $work/steps.tsv 2> /dev/null
}
copy_bandwidth() { # GB/s, the best of the buffers that no cache holds
  awk -F'\t' '$1 == "bandwidth" && $3 == "copy" && $2 + 0 >= 2^28 && $4 + 0 > c { c = $4 + 0 } END { print c + 0 }' $work/ceilings.tsv 2> /dev/null
}
target() { # what, least, stretch or -, value
  if [ -z "$4" ]; then echo "| $1 | $2 | *not measured* | |"; else
    awk -v what="$1" -v v="$4" -v least="$2" -v stretch="$3" 'BEGIN {
      met = v + 0 < least + 0 ? "no" : stretch == "-" || v + 0 < stretch + 0 ? "yes" : "yes, and the stretch of " stretch
      printf "| %s | %s | %s | %s |\n", what, least, v, met }'
  fi
}
target_share() { # what, most or least, percent, value
  if [ -z "$4" ]; then echo "| $1 | at $2 $3% | *not measured* | |"; else
    echo "| $1 | at $2 $3% | $4% | $(if { [ "$2" = most ] && [ "$4" -le "$3" ]; } || { [ "$2" = least ] && [ "$4" -ge "$3" ]; }; then echo yes; else echo no; fi) |"
  fi
}
report_tables() {
  local share
  echo "| stage | result | seconds | limit | |"
  echo "|---|---|---|---|---|"
  awk -F'\t' '{ printf "| %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5 }' $work/stages.tsv
  echo
  echo "## Whole steps"
  echo
  if [ -s $work/steps.tsv ]; then
    echo "B=16 at 124M and 8 at 1.5B, T=1024, $steps steps a run after a first that is left out; runs in ABBA order; medians of a run's steps."
    cat $work/attention 2> /dev/null
    echo
    echo "| model | arm | ms a step, first and second run | tokens/s | over BF16 | over llm.c | last loss |"
    echo "|---|---|---|---|---|---|---|"
    awk -F'\t' '{ k = $1 "\t" $2; if (!(k in n)) order[++keys] = k; n[k]++; ms[k] = ms[k] (n[k] > 1 ? ", " : "") $4; s[k] += $5; loss[k] = $8 }
      END { for (i = 1; i <= keys; i++) { k = order[i]; split(k, f, "\t"); rate = s[k] / n[k]; b = f[1] "\tbf16"; c = f[1] "\tllm.c"
        over_bf16 = b in n ? sprintf("%.2f", rate / (s[b] / n[b])) : ""; over_llmc = c in n ? sprintf("%.2f", rate / (s[c] / n[c])) : ""
        printf "| %s | %s | %s | %.0f | %s | %s | %s |\n", f[1], f[2], ms[k], rate, over_bf16, over_llmc, loss[k] } }' $work/steps.tsv
  else echo "*not measured*"; fi
  echo
  if grep -qv "${tab}ours${tab}" $work/peers.tsv 2> /dev/null; then
    echo "| model | peer (ours: FP8 with an FP8 head, run around each) | tokens/s | ours / peer |"
    echo "|---|---|---|---|"
    awk -F'\t' '$2 == "ours" { o[$1] += $5; m[$1]++; next } { k = $1 "\t" $2; if (!(k in n)) order[++keys] = k; n[k]++; s[k] += $5 }
      END { for (i = 1; i <= keys; i++) { k = order[i]; split(k, f, "\t"); rate = s[k] / n[k]
        printf "| %s | %s | %.0f | %s |\n", f[1], f[2], rate, m[f[1]] ? sprintf("%.2f", o[f[1]] / m[f[1]] / rate) : "" } }' $work/peers.tsv
    echo
  fi
  echo "## Targets"
  echo
  echo "| target | bound | measured | met |"
  echo "|---|---|---|---|"
  target "124M: FP8 over our BF16" 1.15 - "$(ratio 124M fp8 bf16)"
  target "124M: FP8 with an FP8 head over llm.c" 1.25 1.3 "$(ratio 124M 'fp8 head' llm.c)"
  target "1.5B: FP8 over our BF16" 1.3 - "$(ratio 1.5B fp8 bf16)"
  target "1.5B: FP8 with an FP8 head over llm.c" 1.4 1.5 "$(ratio 1.5B 'fp8 head' llm.c)"
  share=$(awk -F'\t' '$1 == "124M" && $2 == "fp8 head" { all += $5
      if ($3 ~ /gemm|nvjet|cutlass|xmma|sm[0-9]+_|cublas|splitK/ && $3 !~ /flash|attention|fmha|sdpa/) products += $5 }
    END { if (all) printf "%.0f", 100 - 100 * products / all }' $work/kernels.tsv 2> /dev/null)
  target_share "124M: kernels that are no product (attention is none), of their sum" most 35 "$share"
  share=$(awk -F'\t' -v copy="$(copy_bandwidth)" '$1 ~ /layernorm|tiles_kernel|turn_kernel|classif|adamw/ { us += $3; mb += $4 }
    END { if (us && copy) printf "%.0f", 1e5 * mb / us / copy }' $work/ncu.tsv 2> /dev/null)
  target_share "124M: memory traffic of the fused kernels, of the copy bandwidth" least 85 "$share"
  echo "| kept activations, of bf16's | at most 0.85 | *not measured* here | |"
  echo "| FP8 - BF16 gap in loss, d12, novels | within the seeds' noise | *not measured* here | |"
  echo "| repeated and resumed runs have the same bits | all | $(cat $work/bits 2> /dev/null || echo '*not measured*') | |"
}
report() {
  echo "# What a GPU showed"
  echo
  echo "Written by \`dev/gpu_check.sh\`: $(cat $work/card 2> /dev/null || echo 'an unknown card');" \
    "$(cat $gpu/VERSION 2> /dev/null || echo 'unknown build'); $(date -u +%Y-%m-%d)."
  echo
  report_tables
  if [ -s $work/ncu.tsv ]; then
    echo
    echo "## Memory traffic, counted by ncu (124M, FP8 with an FP8 head, one step)"
    echo
    echo "| kernel | calls | us | MB | GB/s | of the measured copy |"
    echo "|---|---|---|---|---|---|"
    awk -F'\t' -v copy="$(copy_bandwidth)" 'NR <= 30 { share = copy ? sprintf("%.0f%%", 100 * $5 / copy) : ""
      printf "| %s | %s | %s | %s | %s | %s |\n", substr($1, 1, 80), $2, $3, $4, $5, share }' $work/ncu.tsv
  fi
  local name
  for name in start ceilings matrix tests peers; do
    [ -s "$work/$name.log" ] || continue
    printf '\n## %s\n\n```\n' "$name"
    cut -c1-200 "$work/$name.log"
    echo '```'
  done
  if has "$python" && [ -s $work/ceilings.tsv ]; then
    printf '\n## Floors, by the measured ceilings\n\n'
    $python dev/bench/roofline.py --measured $work --markdown 2>&1
  fi
}
publish() { # after every stage, so that a run that is cut off leaves what it has
  report > $work/RESULTS_GPU.md
  cp $work/RESULTS_GPU.md $results
  if [ -n "${OUT:-}" ] && [ -d "$OUT" ]; then
    cp $work/RESULTS_GPU.md "$OUT/"
    cat $work/*.log > "$OUT/log.txt"
    cp $work/matrix.tsv $work/ceilings.tsv $work/steps.tsv $work/kernels.tsv $work/peers.tsv $work/ncu.tsv "$OUT/" 2> /dev/null
  fi
}

# ==== the run ========================================================================================================
run_stage() { # name, limit, seconds to leave for what follows: in a process group of its own, its output shown as it comes
  local limit=$2 left=$((budget - SECONDS - ${3:-5})) begin=$SECONDS status result
  stage=$1
  if [ -n "${ONLY:-}" ] && [[ " $ONLY " != *" $stage "* ]]; then return; fi
  printf '\n==== %s (at %d s)\n' "$stage" "$SECONDS"
  if [ "$left" -lt 12 ]; then
    printf '%s\tnot run\t0\t%s\tno time was left\n' "$stage" "$limit" >> $work/stages.tsv
    echo "not run: no time is left"
    return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  echo "$limit" > "$work/$stage.limit"
  : > "$work/$stage.log"
  timeout -k 5 "$limit" "$self" --stage "$stage" > "$work/$stage.log" 2>&1 < /dev/null &
  local pid=$!
  tail -n +1 -s 0.2 -f --pid=$pid "$work/$stage.log"
  wait $pid
  status=$?
  case $status in
    0) result=ok ;;
    77) result=skipped ;;
    124 | 137) result="**timed out**" ;;
    *) result="**failed**, status $status" ;;
  esac
  printf '%s\t%s\t%s\t%s\t%s\n' "$stage" "$result" $((SECONDS - begin)) "$limit" \
    "$(cat "$work/$stage.note" 2> /dev/null || tail -1 "$work/$stage.log" | tr '\t|' '  ' | cut -c1-160)" >> $work/stages.tsv
  echo "---- $stage: $result, $((SECONDS - begin)) s"
  publish
}

# Where the libraries of our binaries are, if they do not find them by themselves: the toolkit, or Python's packages.
libraries_find() {
  local missing candidates
  missing=$(for b in gpu_cublaslt train_gpt_fp8cu llmc_train_gpt2cu gpu_trace.so; do
    ldd "$gpu/$b" 2> /dev/null
  done | awk '/not found/ { print $1 }' | sort -u)
  [ -n "$missing" ] || return 0
  candidates="$cuda/lib64:$cuda/lib:$cuda/extras/CUPTI/lib64:$cuda/targets/x86_64-linux/lib"
  if has "$python"; then
    candidates="$candidates:$($python -c 'import glob, sysconfig
print(":".join(glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/*/lib")))' 2> /dev/null)"
  fi
  export LIBRARY_PATH_BEFORE=${LD_LIBRARY_PATH:-}
  export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}:$candidates"
  echo "not found at once: $(echo "$missing" | tr '\n' ' '); looked for in $candidates"
}

gpu_there() {
  if has nvidia-smi; then nvidia-smi -L 2> /dev/null | grep -q '^GPU'; else [ -e /dev/nvidia0 ]; fi
}

case ${1:-} in
  --build) build "${@:2}"; exit ;;
  --stage)
    stage=$2
    "stage_${2//-/_}"
    exit ;;
  --help) sed -n '2,/^set -u/p' "$self" | sed '$d; s/^# \{0,1\}//'; exit ;;
  "") ;;
  *) echo "gpu_check: unknown option '$1'; see --help"; exit 2 ;;
esac
if ! gpu_there; then
  echo "gpu_check: no GPU on this machine; nothing is run ($results stays as it is; --build works without one)"
  exit 0
fi
rm -rf $work
mkdir -p $work
: > $work/stages.tsv
libraries_find
if ! $gpu/train_gpt_fp8cu --version > /dev/null 2>&1 && has nvcc; then
  echo "the binaries do not start on this machine: building them here"
  JOBS=$(nproc) timeout -k 5 150 "$self" --build
fi
run_stage start 60
run_stage matrix 60
run_stage tests 150
run_stage memcheck 60
run_stage ceilings 100
run_stage steps-124M 75
run_stage steps-1.5B 110
run_stage peers 150 90
run_stage racecheck 40
run_stage initcheck 40
run_stage ncu 60
printf '\n==== done after %d s\n\n' "$SECONDS"
publish
report_tables
! grep -q 'failed\|timed out' $work/stages.tsv
