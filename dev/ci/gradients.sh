#!/usr/bin/env bash
# build/lab/gradients: products in bf16 have bf16's gradients to the last bit; a wgrad changes no
# embedding's gradient; a mantissa bit more takes some 6 dB of noise; rounding dy to nearest
# shortens gradients, stochastic rounding does not; the loss is the bf16 trainer's.
set -eu
. "$(dirname "$0")/env.sh"
[ -e build/run-bf16/model_00000006.bin ] || dev/ci/short_run.sh bf16
make all build/lab/gradients
model=build/run-bf16/model_00000006.bin
build/lab/gradients 4 -e $model -t 64 -b 4 --bf16 fprop+dgrad+wgrad | tee build/gradients
"$python" - << 'END'
import math
rows = [line.split("\t") for line in open("build/gradients").read().splitlines()]
rows = [row for row in rows if len(row) == 6 and row[0] not in ("way", "bf16")]
sqnr = {(row[0], row[1]): float(row[2]) for row in rows}
gain = {(row[0], row[1]): float(row[5]) for row in rows}
tensors = {tensor for _, tensor in sqnr}
assert len(tensors) == 15 and len(sqnr) == 18 * 15, len(sqnr)
assert all(math.isinf(sqnr["as asked", tensor]) for tensor in tensors), "bf16 differs"
assert all(math.isinf(v) for (way, t), v in sqnr.items() if way.startswith("wgrad") and t == "wpe")
bit = sqnr["wgrad, x alone", "linear"] - sqnr["wgrad, dy alone", "linear"]
assert 4.5 < bit < 7.5, f"x, in E4M3, makes {bit} dB less noise than dy, in E5M2"
short, right = gain["wgrad, dy alone", "linear"], gain["wgrad, dy stochastic", "linear"]
assert short < -0.1 and abs(right) < 0.1, f"gain {short}, with stochastic rounding {right}"
END
rm -rf build/gradients-run
./train_gpt_bf16 -e $model -t 64 -b 4 -d 1024 -x 1 -n 0 -s 0 -v 0 -o build/gradients-run
loss=$(awk -F'\t' '$1 == 1 { print $3 }' build/gradients-run/log.tsv)
awk -v loss="$loss" '$1 == "# loss" { exit !(($2 - loss) ^ 2 < 1e-11) }' FS='\t' build/gradients ||
  fail "the bf16 trainer's loss is $loss"
for wrong in "1 -e $model" '2 -e d2' '2x' ''; do
  status=0
  # shellcheck disable=SC2086 # several words
  build/lab/gradients $wrong 2> build/gradients-error || status=$?
  [ "$status $(wc -l < build/gradients-error)" = "2 1" ] || fail "gradients $wrong: status $status"
done
