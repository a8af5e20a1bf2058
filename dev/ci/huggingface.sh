#!/usr/bin/env bash
# data/hf.py: checkpoints of GPT-2's architecture to model files and back, against transformers. It
# needs no network.
set -eu
. "$(dirname "$0")/env.sh"
make train_gpt_fp8 train_gpt_fp32 build/eval/logits_fp32 data/tales.d/train.txt
"$python" dev/check/test_hf.py
