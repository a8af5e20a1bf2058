#!/usr/bin/env bash
# What `make bench` runs: the products and whole training steps of this machine, beside what else is at hand. Prints tables
# in Markdown and writes them to dev/bench/RESULTS.md. Times are taken in turn, ROUNDS times round; medians are shown.
#   PYTHON=python3   with PyTorch, to compare with it; else that line says it was skipped
#   LLMC=COMMAND     prints llm.c's "step N: ... (took X ms)" lines at B=4 T=256, e.g. "sh -c 'cd llm.c && ./train_gpt2'"
#   ROUNDS=3 STEPS=5 THREADS=2
set -eu
cd "$(dirname "$0")/../.."
rounds=${ROUNDS:-3} steps=${STEPS:-5} python=${PYTHON:-python3}
export OMP_NUM_THREADS=${THREADS:-2} LC_ALL=C
work=build/bench
rm -rf $work && mkdir -p $work
flags="$(make -s flags) -fopenmp"
native="-march=native -mprefer-vector-width=512"
cc=${CC:-cc}
precision=0
for name in fp8 fp16 bf16 fp32; do
  $cc $flags $native -DPRECISION=$precision train_gpt_fp8.c -o $work/$name -lm
  precision=$((precision + 1))
done
$cc $flags $native dev/bench/products.c -o $work/products -lm
avx2=$(grep -qw avx2 /proc/cpuinfo && echo yes || true)
if [ "$avx2" ]; then
  $cc $flags -march=x86-64-v3 train_gpt_fp8.c -o $work/fp8-avx2 -lm
  $cc $flags -march=x86-64-v3 dev/bench/products.c -o $work/products-avx2 -lm
fi

# A shard with GPT-2's vocabulary: pairs of the corpus's bytes, all below 32,640, as its tokens.
le32() { printf "\\x$(printf %02x $(($1 & 255)))\\x$(printf %02x $(($1 >> 8 & 255)))\\x$(printf %02x $(($1 >> 16 & 255)))\\x$(printf %02x $(($1 >> 24)))"; }
count=400000
{ for field in 20240520 1 $count 50257; do le32 $field; done; head -c $((1024 - 16)) /dev/zero; head -c $((2 * count)) data/tales.d/train.txt; } > $work/gpt2.bin

median() { sort -n | awk '{ v[NR] = $1 } END { if (NR) print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
run() { # build, name of its times, arguments: appends the milliseconds of every step but the first
  rm -rf $work/run
  $work/"$1" "${@:3}" -x $((steps + 1)) -v 0 -s 0 -n 0 -o $work/run > $work/out
  grep -v '^#' $work/run/log.tsv | tail -n +3 | cut -f8 >> "$work/$2.ms"
  grep -v '^#' $work/run/log.tsv | tail -n +3 | cut -f10 >> "$work/$2.tflops"
  grep '^# machine' $work/run/log.tsv | grep -oE 'peak [0-9]+' | cut -d' ' -f2 >> "$work/$2.peak"
  grep -oE 'peak memory .*' $work/out > "$work/$2.memory"
}
row() { # label, name, tokens a step, name to compare with
  local ms gflops peak
  ms=$(median < "$work/$2.ms") gflops=$(median < "$work/$2.tflops") peak=$(median < "$work/$2.peak")
  awk -v l="$1" -v ms="$ms" -v tf="$gflops" -v p="$peak" -v n="$3" -v other="$(median < "$work/$4.ms")" -v worst="$(sort -n "$work/$2.ms" | tail -1)" 'BEGIN {
    printf "| %s | %.0f | %.0f | %.0f | %.0f%% | %.2f | %.2f |\n", l, ms, 1e3 * n / ms, tf * 1e3, 1e5 * tf / p, ms / other, worst / ms }'
}
head="| | ms a step | tokens/s | GFLOP/s | of measured peak | times FP8's time | slowest step / median |
|---|---|---|---|---|---|---|"

{
  echo "# Benchmarks of one machine"
  echo
  echo "Made by \`make bench\` at commit $(git describe --always --dirty 2> /dev/null || echo unknown):$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 || true), $OMP_NUM_THREADS threads, $($cc --version | head -1)."
  echo "Medians of $rounds rounds, taken in turn; a step's time is that of its forward, backward and update, without the first step."
  echo
  echo "## Products, packing included, from FP8 bytes"
  for p in products ${avx2:+products-avx2}; do
    echo
    echo '```text'
    $work/$p 15
    echo '```'
  done
  echo
  echo "## Whole training steps"
  for shape in "d12 4 256 gpt2" "d12 1 1024 gpt2" "d6 4 256 bytes"; do
    read -r model batch context data <<< "$shape"
    input="-i $work/gpt2.bin -j $work/gpt2.bin"
    [ "$data" = gpt2 ] || input="-i data/tales.d/train.txt -j data/tales.d/train.txt"
    arguments="-e $model -b $batch -t $context -m 1 $input"
    id=$model-$context
    python_modes=""
    if [ $model = d12 ] && $python -c 'import torch' 2> /dev/null; then python_modes="plain compile"; fi
    for round in $(seq $rounds); do
      for name in fp8 bf16 fp16 fp32 ${avx2:+fp8-avx2}; do run $name $id-$name $arguments; done
      OMP_NUM_THREADS=1 run fp8 $id-one $arguments
      for mode in $python_modes; do
        $python dev/bench/torch_step.py --batch $batch --seq-len $context --steps $steps --threads $OMP_NUM_THREADS $([ $mode = plain ] || echo --compile) 2> /dev/null | cut -d' ' -f2 >> $work/$id-torch-$mode.ms || true
      done
      if [ "$id" = d12-256 ] && [ "${LLMC:-}" ]; then eval "$LLMC" | grep -a '^step' | tail -n +2 | sed -E 's/.*took ([0-9.]+) ms.*/\1/' >> $work/llmc.ms; fi
    done
    echo
    echo "\`-e $model -b $batch -t $context\`, vocabulary $([ "$data" = gpt2 ] && echo 50257 || echo 256)"
    echo
    echo "$head"
    for name in fp8 bf16 fp16 fp32 ${avx2:+fp8-avx2}; do row "$name" $id-$name $((batch * context)) $id-fp8; done
    row "fp8, 1 thread" $id-one $((batch * context)) $id-fp8
    for mode in plain compile; do
      if [ -s $work/$id-torch-$mode.ms ]; then
        awk -v m=$mode -v ms="$(median < $work/$id-torch-$mode.ms)" -v ours="$(median < $work/$id-fp8.ms)" -v n=$((batch * context)) 'BEGIN { printf "| PyTorch, bf16 autocast%s | %.0f | %.0f | | | %.2f | |\n", m == "compile" ? ", torch.compile" : "", ms, 1e3 * n / ms, ms / ours }'
      elif [ $model = d12 ]; then echo "| PyTorch ($mode) | skipped: \`$python\` has no torch, or it failed | | | | | |"; fi
    done
    if [ "$id" = d12-256 ]; then
      if [ -s $work/llmc.ms ]; then
        awk -v ms="$(median < $work/llmc.ms)" -v ours="$(median < $work/$id-fp8.ms)" -v n=$((batch * context)) 'BEGIN { printf "| llm.c train_gpt2, fp32 | %.0f | %.0f | | | %.2f | |\n", ms, 1e3 * n / ms, ms / ours }'
      else echo "| llm.c | skipped: LLMC names no command | | | | | |"; fi
    fi
    echo
    echo "FP8: $(cat $work/$id-fp8.memory)."
  done
} | tee $work/RESULTS.md
cp $work/RESULTS.md dev/bench/RESULTS.md
