#!/usr/bin/env bash
# Runs that are there are compared: the same gaps as in the comparison that trained them, what does
# not pair is named, their directories stay as they are. Roles of arms; `make curves`.
set -u
. "$(dirname "$0")/env.sh"
c=build/compared
[ -e $c/summary.tsv ] || dev/ci/compare.sh || exit 1
make all build/compare || exit 1
rm -rf build/logs build/run-* build/roles build/curves
says() { grep -qe "$1" build/said || fail "expected '$1', found '$(cat build/said)'"; }
logs() { build/compare --logs "$@" --out build/logs > build/said 2>&1 || fail "--logs $*: $?"; }
refused() { # what it says, words for build/compare
  build/compare "${@:2}" > build/said 2>&1
  local status=$?
  [ $status = 2 ] || fail "build/compare ${*:2}: expected status 2, found $status"
  says "$1"
}
train() { "./train_gpt_$1" -s 0 "${arms_run[@]}" "${@:2}" > build/train.out || fail "train $*"; }
find $c/ -type f -exec cksum {} + > build/before
logs $c/{fp16,bf16,fp8,fp8___recipe_scale_1}-{1,2}
find $c/ -type f -exec cksum {} + | cmp - build/before || fail "a run's directory was written to"
gaps() { grep -v '^#' "$1/summary.tsv" | cut -f 1-12,17-20,26 | sort; }
cmp <(gaps $c) <(gaps build/logs) || fail "the logs' gaps are not the comparison's"
says '^ *[0-9.]* ┤.*[abcd*]'
script -qec "build/compare --logs $c/fp16-1 $c/fp8-1 --out build/logs" build/terminal > /dev/null
grep -qP '\x1b\[38;5;68m\xe2' build/terminal || fail "no color in a terminal"

train fp8 --seed 3 --data-seed 3 -o build/run-seed
train fp8 -x 20 -o build/run-steps
train fp8 -i README.md -o build/run-data
train bf16 -v 10 -o build/run-often
cp -r $c/fp8-1 build/run-twin
cp -r $c/fp8-2 build/run-short
sed -i '/^30\t/,$d' build/run-short/log.tsv
logs $c/fp16-1 $c/fp8-1 build/run-*
for line in "run-seed .*seeds 3 and 3" "run-steps .*steps is '20', that of $c/fp16-1 is '40'" \
  "run-twin .*$c/fp8-1 is of the same arm" "run-data .*data_hash is" \
  "run-short .*unfinished: step 29 of 40" '^bf16 .*(one seed)'; do says "$line"; done
grep -q 'runs differ in data_hash, steps, seed: only' build/logs/curves.svg || fail "no title"
grep -q '>nats a byte<.*' build/logs/curves.svg || fail "no unit"
grep -q '"#1f77b4"' build/logs/curves.svg || fail "fp16 has another color"

refused 'no two arms are left' --logs $c/fp16-1 build/run-steps
refused 'expected no --arms' --logs $c/fp16-1 $c/fp8-1 --seeds 3
refused 'expected directories' --logs --out build/logs
refused "$c: expected the directory of a run" --logs $c/fp16-1 $c
refused 'are the same directory' --logs $c/fp16-1 $c/bf16-1 $c/../compared/fp16-1
refused "'fp64' is no arm" --logs $c/fp16-1 $c/fp8-1 --primary fp64
refused "'fp16' is the reference" --logs $c/fp16-1 $c/fp8-1 --primary fp16
refused "no finished run is of 'bf16'" --logs $c/fp16-1 $c/fp8-1 --reference bf16
refused 'holds the runs' --logs $c/fp16-1 $c/fp8-1 --out $c
sed -i '10,${/^20\t/d}' build/run-twin/log.tsv
refused "run-twin/log.tsv: expected the row of step 20, found '21" --logs $c/fp16-1 build/run-twin

build/compare --arms "bf16,fp8" --seeds 2 --primary fp8 --null --placebo "fp8 --bf16 0.fc.fprop" \
  --jobs 2 --out build/roles -- "${arms_run[@]}" > build/said || fail "roles: status $?"
for line in '^fp8 .*primary: ' '^fp32 .*null: ' '^bf16 --sum-order tiles .*null: ' \
  '^fp8 --bf16 0.fc.fprop .*placebo: ' 'until a verdict pleases'; do says "$line"; done
make curves CURVES_RUN="${arms_run[*]}" CURVES_DIR=build/curves CURVES=build/losses.svg || fail make
[ "$(grep -c 'stroke-width="1.8"' build/losses.svg)" = 5 ] || fail "not 3 losses and 2 gaps"
