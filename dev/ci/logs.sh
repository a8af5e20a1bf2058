#!/usr/bin/env bash
# A run's logs as other programs read them: pandas, TensorBoard, W&B, CSV. The notebook draws small
# runs, and its gaps are those of summary.tsv. Needs the Python packages pandas, matplotlib,
# tensorboard, wandb, nbclient and ipykernel.
set -eu
. "$(dirname "$0")/env.sh"
make all build/compare
"$python" dev/check/test_logs.py
rm -rf build/logs-run build/logs-compared build/logs-pictures
mkdir build/logs-pictures
small=(-e d1 -t 64 -b 2 -d 128 -x 60 -v 10 -m 2)
./train_gpt_fp8 "${small[@]}" -s 0 -n 0 --scales-every 5 -o build/logs-run > build/train.out
build/compare --arms "bf16,fp8" --reference bf16 --seeds 3 --jobs 2 --out build/logs-compared \
  -- "${small[@]}" > build/said
RUNS="build/logs-compared/bf16-1 build/logs-run" COMPARE_DIR=build/logs-compared \
  "$python" dev/check/run_notebook.py dev/notebook/curves.ipynb build/logs-pictures
