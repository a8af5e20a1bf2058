#!/usr/bin/env bash
# A build trains a short run, and resumes it after its last checkpoint was taken away. The run stays
# in build/run-NAME, where other steps look for it.
#   dev/ci/short_run.sh [fp8|fp16|bf16|fp32]
set -eu
. "$(dirname "$0")/env.sh"
name=${1:-fp8}
out=build/run-$name
make "train_gpt_$name" data/tales.d/train.txt
rm -rf "$out"
"./train_gpt_$name" "${short[@]}" -o "$out"
rm "$out"/*_00000006*
"./train_gpt_$name" -y -o "$out"
[ -e "$out/DONE_00000006" ] || fail "the resumed run wrote no checkpoint of step 6"
