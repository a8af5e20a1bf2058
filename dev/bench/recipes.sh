#!/usr/bin/env bash
# What each recipe costs: a training step of the CPU trainer, timed in turn, ROUNDS times round.
#   dev/bench/recipes.sh
#   ROUNDS=3 STEPS=5 THREADS=1 RUN="-e d3 -b 4 -t 256"    tokens are bytes of the embedded corpus
#   ARMS="bf16,fp8,fp8 --recipe mx"                       instead of all; fp8 has to be among them
# Prints a table in Markdown, medians over the rounds. CPU: user time of all threads, which other
# programs disturb less than the time that passes. It is that of a run of STEPS + 1 steps, less that
# of a run of one step, which has the start, the end and the first step in it.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${ROUNDS:-3} steps=${STEPS:-5}
read -ra run <<< "${RUN:--e d3 -b 4 -t 256}"
export OMP_NUM_THREADS=${THREADS:-1} OMP_WAIT_POLICY=passive LC_ALL=C
make -s train_gpt_fp8 train_gpt_bf16 data/tales.d/train.txt >&2
work=build/bench-recipes
rm -rf $work && mkdir -p $work
every="bf16,fp8,fp8 --recipe mx,fp8 --recipe deepseek"
every+=",fp8 --recipe hybrid-qkv,fp8 --recipe nvfp4,fp8 --recipe mxfp4"
every+=",fp8 --recipe nvfp4+stochastic,fp8 --recipe nvfp4+dy:stochastic+hadamard"
every+=",fp8 --recipe x:split,fp8 --recipe split,fp8 --recipe x:split --split qkv.fprop"
every+=",fp8 --recipe e2m1"
IFS=, read -ra arms <<< "${ARMS:-$every}"
case ,${ARMS:-$every}, in
  *,fp8,*) ;;
  *) echo "recipes.sh: ARMS: expected fp8 among them, found '$ARMS'" >&2 && exit 2 ;;
esac

user_seconds() { # of a command, whose output goes to $work/out
  local TIMEFORMAT=%U
  { time "$@" > $work/out 2> $work/error; } 2>&1 || { cat $work/error >&2 && exit 1; }
}
train() { # steps, arm: prints user seconds
  local build words
  read -ra words <<< "$2"
  build=${words[0]}
  rm -rf $work/run
  user_seconds "./train_gpt_$build" -i data/tales.d/train.txt "${run[@]}" "${words[@]:1}" -x "$1" \
    -v 0 -s 0 -n 0 -o $work/run
}
for round in $(seq "$rounds"); do
  for arm in "${arms[@]}"; do
    one=$(train 1 "$arm")
    all=$(train $((steps + 1)) "$arm")
    memory=$(sed -n 's/.*peak memory \([0-9.]*\) MiB (planned \([0-9.]*\)).*/\1\t\2/p' $work/out)
    tokens=$(awk '$1 == 1 { print $2 }' $work/run/log.tsv)
    wall=$(grep -v '^#' $work/run/log.tsv | awk 'NR > 2 { print $8 }' | sort -n |
      awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }')
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$arm" "$round" "$wall" \
      "$(awk "BEGIN { print 1000 * ($all - $one) / $steps }")" "$tokens" "$memory" >> $work/rows.tsv
  done
done
echo "\`${run[*]}\`, $OMP_NUM_THREADS thread, $rounds rounds of $steps steps."
echo
echo "| arm | ms a step, wall | ms a step, CPU | tokens/s of CPU | CPU / FP8's | MiB, peak (planned) |"
echo "|---|---|---|---|---|---|"
awk -F'\t' '
function median(values,  v, n, i, j, t) {
  n = split(values, v, " ")
  for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j] + 0 < v[j - 1] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
  return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
}
!($1 in wall) { order[++arms] = $1 }
{ wall[$1] = wall[$1] " " $3; cpu[$1] = cpu[$1] " " $4; tokens = $5; peak[$1] = $6; planned[$1] = $7 }
END { for (i = 1; i <= arms; i++) { a = order[i]; ms = median(cpu[a])
    printf "| %s | %.0f | %.0f | %.0f | %.2f | %s (%s) |\n", a, median(wall[a]), ms, 1000 * tokens / ms, ms / median(cpu["fp8"]), peak[a], planned[a] } }' $work/rows.tsv
