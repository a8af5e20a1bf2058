#!/usr/bin/env bash
# The laboratory (dev/lab): every program builds; the accumulator has mmaemu's bits; attention's
# figures are NumPy's, and its losses the trainers'; injected faults stop a run or are refused;
# ptq's losses are NumPy's and in 16 bits the trainer's; outliers break INT8 and not E4M3.
set -eu
. "$(dirname "$0")/env.sh"
[ -e build/run-bf16/model_00000006.bin ] || dev/ci/short_run.sh bf16
make all
for file in dev/lab/*.c; do make "build/lab/$(basename "$file" .c)"; done

build/lab/accumulator 4
"$python" dev/check/check_accumulator.py

model=build/run-bf16/model_00000006.bin
data=(-j data/tales.d/train.txt -t 64)
eval=(--eval -i data/tales.d/train.txt -e "$model" -b 8 -m 1)
"$python" dev/check/check_attention.py
build/lab/attention $model "${data[@]}" -m 8 | tee build/attention
validation() { sed -n 's/^validation .*: loss \([0-9.]*\).*/\1/p'; }
loss=$(./train_gpt_bf16 "${eval[@]}" "${data[@]}" | validation)
grep "^loss $loss;" build/attention || fail "attention: the bf16 trainer has $loss"
loss=$(./train_gpt_fp8 "${eval[@]}" "${data[@]}" --recipe current \
  --bf16 attproj+fc+fcproj | validation)
grep "qkv $loss (" build/attention || fail "attention: the fp8 trainer has $loss with FP8 in qkv"
for words in current+x:split current+split nvfp4; do
  way=${words#current+}
  loss=$(./train_gpt_fp8 "${eval[@]}" "${data[@]}" --recipe $words \
    --bf16 attproj+fc+fcproj | validation)
  grep "^${way/:/ }.$loss" build/attention || fail "attention: $way: the fp8 trainer has $loss"
done

run=(-e d2 -x 12 -t 64 -b 2)
build/lab/inject nan 8 1 fc.w "${run[@]}" | grep 'stopped in step 8'
build/lab/inject stale 8 0 fc.dy "${run[@]}"
status=0
build/lab/inject stale 8 0 fc.dy "${run[@]}" --recipe mx || status=$?
[ $status = 2 ] || fail "inject: a stale scale under mx: expected status 2, found $status"

"$python" dev/check/check_ptq.py
ptq=(build/lab/ptq "$model" -i data/tales.d/train.txt -j data/tales.d/val.txt -m 8)
gap() { # how far INT8's loss lies above E4M3's, weights and activations
  awk -F'\t' '$1 == "+ activations" && !($2 in loss) { loss[$2] = $3 }
    END { print loss["INT8"] - loss["E4M3"] }' "$1"
}
"${ptq[@]}" | tee build/ptq
"${ptq[@]}" -f 256 | tee build/ptq-outliers
loss=$(./train_gpt_bf16 --eval -i data/tales.d/train.txt -j data/tales.d/val.txt -e "$model" -t 64 \
  -b 8 -m 1 | validation)
for file in build/ptq build/ptq-outliers; do
  grep "^nothing.bf16.$loss" $file || fail "$file: the bf16 trainer has $loss"
done
awk -v as_is="$(gap build/ptq)" -v outliers="$(gap build/ptq-outliers)" 'BEGIN {
  print "INT8 less E4M3: " as_is ", with outliers " outliers
  exit !(as_is < 0.05 && outliers > 0.05) }' || fail "ptq: outliers do not break INT8 alone"
for wrong in '-f 3' '-f 8192' '-c 0' '-c 129' '-t 65' '-q 1'; do
  status=0
  # shellcheck disable=SC2086 # two words
  "${ptq[@]}" $wrong 2> build/ptq-error || status=$?
  [ "$status $(wc -l < build/ptq-error)" = "2 1" ] || fail "ptq $wrong: status $status"
done
