#!/usr/bin/env bash
# shellcheck disable=SC2086,SC2016 # options are words; stubs are texts
# Rehearses dev/gpu_check.sh without a GPU: every call with all of its stages, on programs that stand for the real ones. The trainers
# and the test programs run on this CPU (dev/cuda/on_cpu.h, with its stubs of cuBLASLt and cuDNN); gpu_cublaslt, nvidia-smi,
# compute-sanitizer and ncu only print what the real ones would. It shows the logic of the script, nothing about a GPU.
#
#   dev/gpu_rehearse.sh              all of it, in minutes
#
# Each call runs three times: with no fault; with every second stage made to fail, where the stages between must still run and be well;
# and with the other half. Then: a stage that hangs, steps that never fuse, a trace of the wrong steps, and whether limits add up.
# Prints a line a check; exit status 0 if all hold.
set -u
export LC_ALL=C
cd "$(dirname "$0")/.." || exit 1
out=$PWD/build/rehearse
failed=0 passed=0
check() { # what, command...
  local what=$1
  shift
  if "$@"; then passed=$((passed + 1)); echo "ok   $what"; else failed=$((failed + 1)); echo "FAIL $what"; fi
}

# ---- the programs
rm -rf "$out" && mkdir -p "$out/gpu/data" "$out/bin" "$out/long"
for p in fp8 fp16 bf16 fp32; do
  dev/cuda/test.sh $p data > "$out/$p.build" 2>&1 || { tail -5 "$out/$p.build"; echo "FAIL: $p was not built"; exit 1; }
done
# As a stage that is to fail or hang, each of them does; else it is what the rest of the text says.
stub() { # file, text
  cat > "$1" << STUB
#!/usr/bin/env bash
case " \${PLANT:-} " in *" \${GPU_STAGE:-none} "*) echo "a planted failure"; exit 9 ;; esac
case " \${HANG:-} " in *" \${GPU_STAGE:-none} "*) sleep 1000 ;; esac
$2
STUB
  chmod +x "$1"
}
for p in fp8 fp16 bf16 fp32; do
  stub "$out/gpu/train_gpt_${p}cu" "export CUDA_ON_CPU_CUDNN=91600; exec $PWD/build/cuda/test_cpu_$p --as-cuda \"\$@\""
  stub "$out/gpu/test_cuda_$p" "exec $PWD/build/cuda/test_cpu_$p \"\$@\""
done
stub "$out/gpu/gpu_cublaslt" 'tsv=$3
case $1 in
  matrix) printf "matrix\tE4M3\tE4M3\tb\tc\td\te\tf\tg\th\tSUCCESS\tSUCCESS\nmatrix\tE5M2\tE5M2\tb\tc\td\te\tf\tg\th\tNOT_SUPPORTED\t-\n" ;;
  ceilings) printf "bandwidth\t1073741824\tcopy\t3000\nproduct\t8192\t8192\t8192\tpeak\t\t\t\tbf16\tSUCCESS\t\t\t790\nproduct\t8192\t8192\t8192\tpeak\t\t\t\tfp8 fast\tSUCCESS\t\t\t1400\n" ;;
  products) printf "product\t768\t768\t16384\tqkv\t\t\t\tbf16\tSUCCESS\t\t\t600\n" ;;
esac | tee -a $tsv'
touch "$out/gpu/gpu_trace.so"
stub "$out/bin/nvidia-smi" 'case "$*" in -L) echo "GPU 0: a rehearsal" ;; *) echo "a rehearsal, driver 0, 0 MiB" ;; esac'
stub "$out/bin/compute-sanitizer" 'shift 6; "$@"; status=$?; echo "========= ERROR SUMMARY: 0 errors"; exit $status'
stub "$out/bin/ncu" 'echo "\"Kernel Name\",\"gpu__time_duration.sum\",\"dram__bytes_read.sum\",\"dram__bytes_write.sum\""
for step in 1 2; do printf "\"tiles_kernel\",\"1000\",\"2000000\",\"1000000\"\n\"adamw_kernel\",\"3000\",\"9000000\",\"9000000\"\n"; done'
stub "$out/bin/python" 'case "$*" in *gpu_peers.py*) echo "124M torch: skipped: no GPU"; printf "124M\tours\t1\t10\t1000\n124M\ttorch\t1\t20\t500\n" >> "${@: -1}" ;; *) exec python3 "$@" ;; esac'
echo "a rehearsal, with cuDNN" > "$out/gpu/VERSION"
head -c 60000 dev/cuda/test_cuda.cu > "$out/gpu/data/tales.txt"
python3 - "$out" << 'PYTHON'
import lzma, random, struct, sys
out = sys.argv[1]
tokens = [random.Random(1).randrange(40) for _ in range(30000)]
shard = struct.pack("<256i", 20240520, 1, len(tokens), 256, *[0] * 252) + struct.pack(f"<{len(tokens)}H", *tokens)
for path in (out + "/gpu/data/gpt2.bin", out + "/long/val.bin"): open(path, "wb").write(shard)
open(out + "/long/train.bin.xz", "wb").write(lzma.compress(shard))
PYTHON

export PATH=$out/bin:$PATH GPU_DIR=$out/gpu GPU_WORK=$out/run GPU_LONG=$out/long RESULTS=$out/RESULTS_GPU.md OUT=$out/out PYTHON=python CUDA_HOME=$out/no-toolkit
export REHEARSED_D4="-e d1 -t 32 -b 2 -x 20" REHEARSED_T="-t 32" REHEARSED_TOKENS=32 REHEARSED_B=2 REHEARSED_SMALL="-e d1 -t 32 -b 2"
export REHEARSED_LONG="-e d1 -t 32 -b 2 --val-rows 2 -u 2" LONG_STEPS=12 REHEARSED_SCALE=4 STEPS=3 JOBS=2 TESTS="numbers encoder steps"
for p in fp8 bf16; do # what --build keeps of the C file's run
  build/cuda/test_cpu_$p --as-ref -i "$out/gpu/data/tales.txt" -j "$out/gpu/data/tales.txt" -m 1 -v 0 -s 0 -n 0 $REHEARSED_D4 -o "$out/cpu-$p" > "$out/cpu-$p.out" 2>&1
  grep '^[0-9]' "$out/cpu-$p/log.tsv" | cut -f1,3 > "$out/gpu/data/cpu-$p.tsv"
done

# ---- the calls
calls="smoke truth speed depth long"
stages() { dev/gpu_check.sh --limits "$1" | tr ' ' '\n' | sed -n '2,$s/:.*//p'; }
half() { stages "$1" | awk -v odd="$2" 'NR % 2 == odd'; } # every second stage
rehearse() { # call, name of the run, environment...: its output in NAME.log, its table in NAME.tsv
  local call=$1 name=$2
  shift 2
  rm -rf "$out/run/stages-$call.tsv" "$OUT" && mkdir -p "$OUT"
  env "$@" dev/gpu_check.sh "$call" > "$out/$name.log" 2>&1
  cp "$out/run/stages-$call.tsv" "$out/$name.tsv"
}
result_of() { awk -F'\t' -v s="$2" '$1 == s { print $2 }' "$out/$1.tsv"; }
well() { # name of the run, stages that must fail; all others are well
  local call=${1%%-*} s result want
  for s in $(stages "$call"); do
    result=$(result_of "$1" "$s") want=ok
    [[ " $2 " != *" $s "* ]] || want='**failed**'
    [ "$result" = "$want" ] || { echo "     $s: expected '$want', found '$result':"; sed -n "/==== $call $s/,/^---- $s/p" "$out/$1.log" | tail -8; return 1; }
  done
}
came_back() { [ -s "$OUT/$1.md" ] && [ -s "$OUT/$1.log" ] && tar -tzf "$OUT/$1.tgz" | grep -q "stages-$1.tsv" && grep -q '^next: ' "$out/$1-$2.log"; }
for call in $calls; do
  rehearse $call $call-whole PLANT=
  check "$call: every stage is well" well $call-whole ""
  check "$call: results came back, and what to do next is said" came_back $call whole
  for odd in 1 0; do
    planted=$(half $call $odd | tr '\n' ' ')
    [ -n "$planted" ] || continue
    rehearse $call $call-planted$odd PLANT="$planted"
    check "$call: with ${planted}failing, the others ran and are well" well $call-planted$odd "$planted"
  done
done

# ---- what would waste a GPU's minutes
says() { grep -qF "$2" "$out/$1.log"; }
rehearse smoke smoke-hang HANG=versions ONLY="versions kernels" REHEARSED_SCALE=3 TESTS=encoder
check "a stage that hangs ends at its limit, and the next one runs" [ "$(result_of smoke-hang versions),$(result_of smoke-hang kernels)" = "**timed out**,ok" ]
rehearse smoke smoke-unfused ONLY=steps STEPS_OPTIONS="--recipe current" ITEMS=fp8-own-attention
check "steps that never fuse are found" says smoke-unfused "expected 2 separate quantizing passes"
rehearse smoke smoke-product ONLY=kernels CUDA_ON_CPU_LT_REFUSES=fp8 TESTS="steps encoder"
check "a product that does not exist is one line with its status" says smoke-product "(status 7)"
check "and its neighbours are well" grep -q "^ok   fp8 encoder" "$out/smoke-product.log"
rehearse speed speed-wrong ONLY=trace-124M TRACE_OPTIONS="--scales-every 1 --sqnr-every 1"
check "a trace of steps that record SQNR is found" says speed-wrong "these are not the steps that train"
rehearse truth truth-losses ONLY=losses REHEARSED_D4="-e d1 -t 32 -b 2 -x 20 -l 0.1"
check "losses that are not the CPU's are found" says truth-losses "FAIL fp8"
fits() { # the stages' limits, within the call's, within what a machine is lent for at once
  env -u REHEARSED_SCALE dev/gpu_check.sh --limits "$1" | awk '{ for (i = 2; i <= NF; i++) { split($i, f, ":"); sum += f[2] } exit !(sum + 2 <= $1 && $1 <= 570) }'
}
for call in $calls; do check "$call: the limits of its stages add up to less than its own" fits $call; done
speed_report() {
  dev/gpu_check.sh --collect "$1" > /dev/null && grep -q 'kernels of a traced step' "$RESULTS" && grep -q '^| 124M | fp8 head |' "$RESULTS"
}
# a test that fails after some that are well, all of whose lines speak of errors
cat > "$out/gpu/test_cuda_bf16" << 'STUB'
#!/usr/bin/env bash
echo "ok   attention, T 1 error 0.00e+00 (allowed 3.91e-03)"; echo "failed: line 777: x == y: a planted line"; echo "1 passed, 1 failed"; exit 1
STUB
rehearse smoke smoke-line ONLY=kernels ITEMS=bf16-encoder TESTS=encoder
check "a check that fails shows the line that tells why" says smoke-line "a planted line"
check "and what its program said comes back" grep -q "line 777" "$OUT/smoke.log"
rehearse truth truth-without NO_CUDNN=1 ONLY=repeats
check "without cuDNN none of it is asked for" grep -q "3 of 3 well" "$out/truth-without.log"
rehearse long long-short LONG_SECONDS=30 REHEARSED_SCALE=1
check "a shorter long run has rows of four runs" [ "$(cut -f1,2 "$out/run/long.tsv" | sort -u | wc -l)" = 4 ]
no_complaints() { ! grep -E '^awk:|^sed:|gpu_check.sh: line|unbound variable' "$out"/*.log; }
check "the script itself complains of nothing" no_complaints
rehearse speed speed-124M ONLY=steps-124M
rehearse speed speed-again ONLY=steps-1.5B
check "a stage that runs again keeps the figures of others" [ "$(cut -f1 "$out/run/steps.tsv" | sort -u | wc -l)" = 2 ]
rehearse speed speed-again PLANT=
check "what came back becomes the results file" speed_report "$OUT"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
