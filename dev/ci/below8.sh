#!/usr/bin/env bash
# Below eight bits: dev/check/test_below8.c, native, with AVX2 and in portable C; whole runs, which
# have the same bits for every build and number of threads, by the products' definition and across a
# resume; what is refused.
set -eu
. "$(dirname "$0")/env.sh"
export OMP_WAIT_POLICY=passive
make data/tales.d/train.txt
read -ra flags <<< "$(make -s flags) -Wall -Wextra -Werror -fopenmp -DPRECISION=0"
declare -A target=([native]=-march=native [portable]=-fopenmp [avx2]=-march=x86-64-v3)
grep -qw avx2 /proc/cpuinfo || unset 'target[avx2]'
at=build/below8
rm -rf $at && mkdir -p $at
for name in "${!target[@]}"; do
  gcc "${flags[@]}" "${target[$name]}" dev/check/test_below8.c -o "$at/test-$name" -lm &
  gcc "${flags[@]}" "${target[$name]}" train_gpt_fp8.c -o "$at/$name" -lm
  wait $! || fail "test_below8.c does not compile: $name"
done
gcc "${flags[@]}" -DREFERENCE train_gpt_fp8.c -o $at/reference -lm
for case in "native 1" "native 3" "portable 1" "portable 3" ${target[avx2]:+"avx2 3"}; do
  read -r name threads <<< "$case"
  echo "== $case threads" && OMP_NUM_THREADS=$threads "$at/test-$name"
done

run() { # build, threads, directory, options
  OMP_NUM_THREADS=$2 "$at/$1" "${@:4}" -o "$3" > $at/out 2>&1 || fail "$*: $(tail -1 $at/out)"
}
of_run=(-e d1 --channels 48 --heads 3 -t 40 -b 3 -d 240 -x 6 -n 3 -v 3 -m 2 -s 0 --scales-every 1)
recipes=(nvfp4+stochastic+hadamard mxfp4+stochastic e2m1+stochastic 'split --split qkv.fprop')
for words in "${recipes[@]}"; do
  rm -rf $at/run-*
  read -ra recipe <<< "--recipe $words"
  for name in "${!target[@]}" reference; do
    for n in 1 3; do run "$name" $n "$at/run-$name-$n" "${of_run[@]}" "${recipe[@]}"; done
  done
  cp -r $at/run-native-3 $at/run-resumed && rm $at/run-resumed/*_00000006*
  run native 1 $at/run-resumed -y
  for out in "$at"/run-*; do
    for file in model_00000006.bin state_00000006.bin scales.tsv; do
      cmp "$out/$file" "$at/run-portable-1/$file"
    done
    diff <(grep -v '^#' "$out/log.tsv" | cut -f1-7) \
      <(grep -v '^#' "$at/run-portable-1/log.tsv" | cut -f1-7)
    echo "ok   $words: $out has the bits of portable C with 1 thread"
  done
done

while IFS=';' read -r text words; do
  read -ra options <<< "$words"
  status=0
  $at/native -e d1 -o $at/none "${options[@]}" 2> $at/err || status=$?
  [[ "$status $(wc -l < $at/err)" == "2 1" && $(< $at/err) == *"$text"* ]] ||
    fail "$words: expected status 2 and '$text', found $status and '$(< $at/err)'"
  echo "ok   $words is refused"
done < dev/ci/below8.txt
