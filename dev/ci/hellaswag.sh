#!/usr/bin/env bash
# HellaSwag: data/hellaswag.py and build/eval/hellaswag_* against encodings from scratch and
# transformers' GPT-2, what they refuse; every precision builds, and scores a short run.
set -eu
. "$(dirname "$0")/env.sh"
export OMP_WAIT_POLICY=passive # many short calls
make train_gpt_fp32 train_gpt_fp8
for p in fp8 fp16 bf16 fp32; do make build/eval/hellaswag_$p; done
"$python" dev/check/test_hellaswag.py

out=build/hellaswag
mkdir -p $out
for i in 1 2 3 4 5 6; do printf 'a text\n%s\nof one\nof two\nof some\nof all\n' $((i % 4)); done \
  > $out/tasks.txt
"$python" data/hellaswag.py --input $out/tasks.txt --vocab-kind byte --out $out/tasks.bin
[ -e build/run-fp8/model_00000006.bin ] || dev/ci/short_run.sh fp8
for p in fp8 fp16 bf16 fp32; do
  build/eval/hellaswag_$p build/run-fp8/model_00000006.bin $out/tasks.bin > $out/$p
  grep -q '^tasks       6, of which 0 lost' $out/$p || fail "$p: $(cat $out/$p)"
  # The tasks differ in their labels only, so one choice is made six times.
  grep -qE 'summed loss.* 0\.(1667|3333) ' $out/$p || fail "$p: $(cat $out/$p)"
done
cat $out/fp8
