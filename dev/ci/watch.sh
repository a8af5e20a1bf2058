#!/usr/bin/env bash
# build/watch: its page in a browser while a run is under way; what it refuses; what it says of bad
# input.
set -eu
. "$(dirname "$0")/env.sh"
make train_gpt_fp8 data/tales.d/train.txt build/watch
"$python" dev/check/test_watch.py
