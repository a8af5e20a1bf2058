#!/usr/bin/env bash
# shellcheck disable=SC2015,SC2034,SC2059,SC2086 # options are words; A && B || true; le32 prints escapes
# What `make bench` runs: the products and whole training steps of this machine, beside what else is at hand. Prints tables
# in Markdown and writes them to dev/bench/RESULTS-MACHINE.md. Times are taken in turn, ROUNDS times round; medians are shown.
#   MACHINE=NAME     of the file; without it a kind of CPU, such as zen3 or xeon-amx
#   BEFORE=COMMIT    the C file of that commit, too: its products call by call in turn with today's (paired.c), its steps
#   PYTHON=python3   with PyTorch, to compare with it; else that line says it was skipped
#   LLMC=COMMAND     prints llm.c's "step N: ... (took X ms)" lines at B=4 T=256, e.g. "sh -c 'cd llm.c && ./train_gpt2'"
#   ROUNDS=3 STEPS=5 THREADS=2
#   SHAPES="d12 4 256 gpt2, d12 1 1024 gpt2, d6 4 256 bytes"   model, sequences, context, kind of tokens
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${ROUNDS:-3} steps=${STEPS:-5} python=${PYTHON:-python3}
export OMP_NUM_THREADS=${THREADS:-2} LC_ALL=C
unset OPENBLAS_CORETYPE ONEDNN_MAX_CPU_ISA DNNL_MAX_CPU_ISA # the libraries choose, or this script for them
export THP_MEM_ALLOC_ENABLE=1                               # PyTorch's tensors in huge pages: faster on the one Xeon it was tried on
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
if [ "${BEFORE:-}" ]; then
  git show "$BEFORE:train_gpt_fp8.c" > $work/before.c
  $cc $flags $native $work/before.c -o $work/fp8-before -lm
  for version in $work/before.c train_gpt_fp8.c; do
    $cc $flags $native -shared -fPIC -DLIBRARY="\"$PWD/$version\"" dev/bench/paired.c -o $work/"$(basename $version .c)".so -lm
  done
  $cc $flags dev/bench/paired.c -o $work/paired -ldl
fi
cpu_has() { grep -qw "$1" /proc/cpuinfo && echo yes || true; }
cpu_is() { grep -m1 "^$1" /proc/cpuinfo | sed 's/.*: *//'; }
machine() { # one kind of CPU, one file
  case "$(cpu_is vendor_id) $(cpu_is 'cpu family') $(cpu_has amx_bf16) $(cpu_has avx512f)" in
    *" yes yes") echo xeon-amx ;;
    "AuthenticAMD 26 "*) echo zen5 ;;
    "AuthenticAMD 25  yes") echo zen4 ;;
    "AuthenticAMD 25  ") echo zen3 ;;
    *) echo "$(uname -m) $(cpu_is vendor_id) $(cpu_is 'CPU implementer') $(cpu_is 'CPU part') $(cpu_is 'cpu family') $(cpu_is 'model\b')" | tr -s 'A-Z ' 'a-z-' | sed 's/-$//' ;;
  esac
}
results=dev/bench/RESULTS-$(basename "${MACHINE:-$(machine)}").md
avx2=$([ "$(cpu_has avx512f)" ] && cpu_has avx2) || true # of its own where native is more than that
tiles=$(cpu_has amx_bf16)                               # elsewhere that order is computed as well, at 85% of the speed
torch_types=bf16
[ "$(cpu_has avx512_bf16)$tiles" ] || torch_types=fp32  # PyTorch's bf16 is slower than that without such instructions
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
head="| | ms a step | tokens/s | GFLOP/s | of measured peak | times FP8's time in that order | slowest step / median |
|---|---|---|---|---|---|---|"

# Products: a table of means over the shapes of a group, then every shape. A row's figures are medians over the rounds.
has() { $python -c "import $1" 2> /dev/null; }
# OpenBLAS picks its kernel by the model of the CPU, which virtual machines hide, and not always its fastest one. Each is
# tried three times in turn, and the best time of each counts.
sgemm() { ${openblas:+env OPENBLAS_CORETYPE=$openblas} $python dev/bench/peers.py sgemm "$@"; }
openblas_best() {
  local best=0 fastest="" speed
  for _ in 1 2 3; do
    for openblas in "" Haswell Zen SkylakeX Cooperlake Sapphirerapids; do
      speed=$(printf 'x\tx\tfprop\t1024\t768\t768\n' | sgemm 15 2> /dev/null | cut -f7) || continue
      if [ "${speed:-0}" -gt $best ]; then best=$speed fastest=$openblas; fi
    done
  done
  openblas=$fastest
}
products() {
  local round openblas=""
  if has numpy; then openblas_best; fi
  for round in $(seq $rounds); do
    $work/products 9 >> $work/products.tsv
    $work/products 1 fma > $work/shapes.tsv
    if [ "$avx2" ]; then $work/products-avx2 9 fma | sed 's/^fma/avx2/' >> $work/products.tsv; fi
    if has numpy; then
      sgemm 9 < $work/shapes.tsv | sed 's/^sgemm/OpenBLAS sgemm/' >> $work/products.tsv
    fi
    if has torch && [ "$(cpu_has avx512_bf16)" ]; then
      ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 $python dev/bench/peers.py bf16 9 < $work/shapes.tsv | sed 's/^bf16/oneDNN bf16 without AMX/' >> $work/products.tsv
      if [ "$tiles" ]; then $python dev/bench/peers.py bf16 9 < $work/shapes.tsv | sed 's/^bf16/oneDNN bf16, AMX/' >> $work/products.tsv; fi
    fi
  done
  if has numpy; then
    echo "OpenBLAS's kernel: \`$(sgemm kernel)\`, the fastest here of those it has (${openblas:-its own choice})."
  else echo "OpenBLAS: skipped, \`$python\` has no NumPy."; fi
  if ! has torch; then echo "oneDNN: skipped, \`$python\` has no torch."
  elif [ "$(cpu_has avx512_bf16)" ]; then echo "oneDNN runs \`$($python dev/bench/peers.py bf16 kernel)\`$([ ! "$tiles" ] || echo ", without AMX \`$(ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 $python dev/bench/peers.py bf16 kernel)\`")."
  else echo "oneDNN: skipped, this CPU has no bf16 products."; fi
  echo
  grep -v '^rule' $work/products.tsv | sort -t "$(printf '\t')" -k1,6 -k7,7n | awk -F'\t' '
    function flush_row() { if (key != "") { m = int((c + 1) / 2); print key "\t" v[m] "\t" share[m] } }
    { k = $1 "\t" $2 "\t" $3 "\t" $4 "\t" $5 "\t" $6; if (k != key) { flush_row(); key = k; c = 0 } v[++c] = $7; share[c] = $9 }
    END { flush_row() }' > $work/medians.tsv
  awk -F'\t' '
    FNR == NR { shape = $3 "\t" $4 "\t" $5 "\t" $6; if ($1 != "rule" && !(shape in seen)) { seen[shape] = 1; order[++shapes] = shape; group[shapes] = $2 } next }
    { value[$1 "\t" $3 "\t" $4 "\t" $5 "\t" $6] = $7; part[$1 "\t" $3 "\t" $4 "\t" $5 "\t" $6] = $8; if (!($1 in known)) { known[$1] = 1 } }
    END {
      n = split("fma\tpairs\ttiles\tavx2\tOpenBLAS sgemm\toneDNN bf16 without AMX\toneDNN bf16, AMX", all, "\t")
      split("fp32 FMA\tvdpbf16ps\tAMX (`--sum-order tiles`)\tAVX2 build, FMA\tOpenBLAS sgemm\toneDNN bf16 without AMX\toneDNN bf16, AMX", title, "\t")
      for (i = 1; i <= n; i++) if (all[i] in known) { use[++u] = all[i]; head = head " " title[i] " |"; line = line "---|" }
      print "GFLOP/s, and where it is ours the share of the peak of the instruction, measured in turn. Means over shapes:\n"
      print "| shapes |" head "\n|---|" line
      split("d12 head C=384 C=256 odd", groups, " ")
      for (g = 1; g <= 5; g++) {
        row = "| " groups[g] " |"
        for (i = 1; i <= u; i++) {
          sum = share = count = 0
          for (s = 1; s <= shapes; s++) if (group[s] == groups[g] && (use[i] "\t" order[s]) in value) { sum += value[use[i] "\t" order[s]]; share += part[use[i] "\t" order[s]]; count++ }
          row = row (count ? sprintf(" %.0f", sum / count) : " -") (share ? sprintf(" (%.0f%%) |", share / count) : " |")
        }
        print row
      }
      print "\nEvery shape:\n\n| product | M x N x K |" head "\n|---|---|" line
      for (s = 1; s <= shapes; s++) {
        split(order[s], f, "\t"); row = "| " f[1] " | " f[2] " x " f[3] " x " f[4] " |"
        for (i = 1; i <= u; i++) { k = use[i] "\t" order[s]; row = row (k in value ? " " value[k] : " -") (part[k] + 0 ? " (" part[k] ") |" : " |") }
        print row
      }
    }' $work/shapes.tsv $work/medians.tsv
}

{
  echo "# Benchmarks of one machine"
  echo
  echo "Made by \`make bench\` at commit $(git describe --always --dirty 2> /dev/null || echo unknown):$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 || true), $OMP_NUM_THREADS threads, $($cc --version | head -1)."
  echo "Medians of $rounds rounds, taken in turn; a step's time is that of its forward, backward and update, without the first step."
  echo
  echo "## Products, packing included, from FP8 bytes"
  echo
  products
  if [ "${BEFORE:-}" ]; then
    echo
    echo "Of commit $BEFORE and today's, call by call in turn; medians, and the median of old time / new time:"
    echo
    $work/paired $work/before.so $work/train_gpt_fp8.so
  fi
  echo
  echo "## Whole training steps"
  while read -r model batch context data <&3; do
    input="-i $work/gpt2.bin -j $work/gpt2.bin"
    [ "$data" = gpt2 ] || input="-i data/tales.d/train.txt -j data/tales.d/train.txt"
    arguments="-e $model -b $batch -t $context -m 1 $input"
    id=$model-$context
    python_modes=""
    if [ $model = d12 ] && has torch; then python_modes=$(for type in $torch_types; do echo "$type $type-compile"; done); fi
    for round in $(seq $rounds); do
      for name in fp8 bf16 fp16 fp32 ${avx2:+fp8-avx2}; do run $name $id-$name $arguments; done
      OMP_NUM_THREADS=1 run fp8 $id-one $arguments
      if [ "${BEFORE:-}" ]; then
        run fp8-before $id-before $arguments
        if [ "$tiles" ]; then run fp8-before $id-before-tiles $arguments --sum-order tiles; fi
      fi
      if [ "$tiles" ]; then
        for name in fp8 bf16 fp16 fp32; do run $name $id-$name-tiles $arguments --sum-order tiles; done
        OMP_NUM_THREADS=1 run fp8 $id-one-tiles $arguments --sum-order tiles
      fi
      run fp8 $id-again $arguments ${tiles:+--sum-order tiles} --recompute
      for mode in $python_modes; do
        torch_flags="$(case $mode in *compile) echo --compile ;; esac) $(case $mode in fp32*) echo --fp32 ;; esac)"
        $python dev/bench/torch_step.py --batch $batch --seq-len $context --steps $steps --threads $OMP_NUM_THREADS $torch_flags 2> /dev/null | cut -d' ' -f2 >> $work/$id-torch-$mode.ms || true
      done
      if [ "$id" = d12-256 ] && [ "${LLMC:-}" ]; then eval "$LLMC" | grep -a '^step' | tail -n +2 | sed -E 's/.*took ([0-9.]+) ms.*/\1/' >> $work/llmc.ms || true; fi
    done
    echo
    echo "\`-e $model -b $batch -t $context\`, vocabulary $([ "$data" = gpt2 ] && echo 50257 || echo 256)"
    echo
    echo "$head"
    for name in fp8 bf16 fp16 fp32 ${avx2:+fp8-avx2}; do row "$name" $id-$name $((batch * context)) $id-fp8; done
    row "fp8, 1 thread" $id-one $((batch * context)) $id-fp8
    if [ "${BEFORE:-}" ]; then row "fp8 of $BEFORE" $id-before $((batch * context)) $id-fp8; fi
    if [ "$tiles" ]; then
      for name in fp8 bf16 fp16 fp32; do row "$name, \`--sum-order tiles\`" $id-$name-tiles $((batch * context)) $id-fp8-tiles; done
      row "fp8 in tiles, 1 thread" $id-one-tiles $((batch * context)) $id-fp8-tiles
      if [ "${BEFORE:-}" ]; then row "fp8 in tiles of $BEFORE" $id-before-tiles $((batch * context)) $id-fp8-tiles; fi
    fi
    row "fp8${tiles:+ in tiles}, \`--recompute\`" $id-again $((batch * context)) $id-fp8${tiles:+-tiles}
    peer() { # label, file of its times: beside ours
      awk -v l="$1" -v ms="$(median < "$2")" -v pairs="$(median < $work/$id-fp8.ms)" -v tiles="$([ ! "$tiles" ] || median < $work/$id-fp8-tiles.ms)" -v n=$((batch * context)) 'BEGIN {
        printf "| %s | %.0f | %.0f | | | %.2f%s | |\n", l, ms, 1e3 * n / ms, ms / pairs, tiles ? sprintf(" of pairs, %.2f of tiles", ms / tiles) : "" }'
    }
    for mode in $python_modes; do
      if [ -s $work/$id-torch-$mode.ms ]; then peer "PyTorch, ${mode%-*}$(case $mode in bf16*) echo ' autocast' ;; esac)$(case $mode in *compile) echo ', torch.compile' ;; esac)" $work/$id-torch-$mode.ms
      else echo "| PyTorch ($mode) | failed | | | | | |"; fi
    done
    if [ $model = d12 ] && [ ! "$python_modes" ]; then echo "| PyTorch | skipped: \`$python\` has no torch | | | | | |"; fi
    if [ "$id" = d12-256 ]; then
      if [ -s $work/llmc.ms ]; then
        peer "llm.c train_gpt2, fp32" $work/llmc.ms
      else echo "| llm.c | skipped: LLMC names no command | | | | | |"; fi
    fi
    echo
    echo "FP8: $(cat $work/$id-fp8.memory); with \`--recompute\`: $(cat $work/$id-again.memory)."
  done 3< <(echo "${SHAPES:-d12 4 256 gpt2, d12 1 1024 gpt2, d6 4 256 bytes}" | tr , '\n')
} | tee $work/RESULTS.md
cp $work/RESULTS.md "$results"
