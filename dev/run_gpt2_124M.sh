#!/usr/bin/env bash
# GPT-2 (124M) from nothing: programs, data, training, its HellaSwag score. Linux; one GPU or a CPU.
#
#   dev/run_gpt2_124M.sh                    # run it again after any stop: it goes on where it was
#   TOKENS=1000000000 OUT=log/1B dev/run_gpt2_124M.sh
#
# Every variable below can be set so. Python needs numpy, tiktoken and pyarrow. Without a network
# see DATA_FROM and TASKS_FROM, and give --vocab FILE there (data/tokens.py --help).
#
# What to expect of 10 billion tokens:
#   llm.c     95 minutes on 8 A100, loss 3.28 on FineWeb, HellaSwag 0.299 (OpenAI's model: 0.294);
#             its discussion 481. FineWeb-Edu is another text, so its loss differs.
#   one H100  5.2 hours in FP8 (539 thousand tokens a second), 6.0 in BF16, with cuDNN's attention.
#             This is on paper (dev/bench/roofline.py, 124M, steps of 16,384 tokens; larger steps
#             take less): no GPU has run the program yet.
#   2 cores   of an AMD EPYC with AVX-512 BF16: 781 tokens a second in FP8 (dev/LOG.md,
#             2026-11-30), that is 148 days. So a CPU's default is 20 million tokens, 7 hours, too
#             few for more than chance in HellaSwag (0.25).
#   disk      28 GB of downloads, 20 GB of tokens, 3 GB of checkpoints.
set -eu
cd "$(dirname "$0")/.."
gpu=
if nvidia-smi > /dev/null 2>&1; then gpu=cu; fi
GPU=${GPU-$gpu} # cu: train_gpt_fp8cu; empty: train_gpt_fp8
stop() { echo "$0: $*" >&2; exit 2; }
by_device() { if [ -n "$GPU" ]; then echo "$1"; else echo "$2"; fi; } # of a GPU, of a CPU
OUT=${OUT:-log/gpt2_124M}
OUT=${OUT%/}
PRECISION=${PRECISION:-fp8} # or fp16, bf16, fp32
MODEL=${MODEL:-d12}
TOKENS=${TOKENS:-$(by_device 10000000000 20000000)}
CONTEXT=${CONTEXT:-1024}
BATCH=${BATCH:-$(by_device 16 4)} # sequences at a time: what fits into memory
BATCH_TOKENS=${BATCH_TOKENS:-$(by_device 524288 32768)} # a step: a multiple of BATCH x CONTEXT
for number in "$TOKENS" "$BATCH_TOKENS"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || stop "TOKENS, BATCH_TOKENS: expected a number, found '$number'"
done
STEPS=$((TOKENS / BATCH_TOKENS))
[ "$STEPS" -gt 0 ] || stop "TOKENS: expected BATCH_TOKENS ($BATCH_TOKENS) or more, found $TOKENS"
WARMUP=${WARMUP:-$((STEPS * 700 / 18865 + 1))} # llm.c: 700 of 18,865
LR=${LR:-0.0006}
CHECKPOINT=${CHECKPOINT:-$(by_device 500 10)} # steps between checkpoints
VALIDATION=${VALIDATION:-$(by_device 250 50)} # steps between validations
VAL_ROWS=${VAL_ROWS:-$(by_device 1024 80)}    # sequences of a validation
DATA=${DATA:-data/fineweb_edu/fineweb_edu}    # shards: DATA_train_000000.bin and so on
# A download of 2 GB has 700 million tokens, 100 million are for validation.
SHARDS=$(((TOKENS + 799999999) / 700000000))
DATA_FROM=${DATA_FROM:---shards $((SHARDS > 14 ? 14 : SHARDS))}
TASKS=${TASKS:-data/hellaswag/hellaswag_val.bin}
TASKS_FROM=${TASKS_FROM:-} # for example: --input tasks.txt
TASK_COUNT=${TASK_COUNT:-10042}
PYTHON=${PYTHON:-python3}
trainer=train_gpt_$PRECISION$GPU
score=build/eval/hellaswag_$PRECISION
# A file keeps what it was made with; another call has to ask for the same.
same() { # file, text, what to do
  [ ! -e "$1" ] || [ "$(cat "$1")" = "$2" ] ||
    stop "$1: expected '$(cat "$1")', found '$2'; $3"
}
mkdir -p "$(dirname "$OUT")"
exec 9> "$OUT.lock"
flock -n 9 || stop "$OUT: another call is at work there"
settings="$PRECISION $MODEL, $TOKENS tokens, $CONTEXT $BATCH $BATCH_TOKENS $WARMUP $LR, $DATA"
same "$OUT.settings" "$settings" "name another OUT, or remove that file and the run"
[ -e "$OUT/log.tsv" ] || [ ! -e "$OUT" ] || stop "$OUT: expected a run or nothing; name another OUT"

echo "== build"
make "$trainer" "$score"

# A file beside the shards says that they are whole, and how they were made.
echo "== data"
mkdir -p "$(dirname "$DATA")"
exec 8> "$DATA.lock"
flock 8 # another call may be making the same data
same "$DATA.whole" "$DATA_FROM" "set DATA_FROM to the former, or name another DATA"
# shellcheck disable=SC2086 # options are words
if [ ! -e "$DATA.whole" ]; then
  "$PYTHON" data/fineweb_edu.py --out "$DATA" --workers "$(nproc)" $DATA_FROM
  echo "$DATA_FROM" > "$DATA.whole"
fi
# shellcheck disable=SC2086
[ -e "$TASKS" ] || "$PYTHON" data/hellaswag.py --out "$TASKS" $TASKS_FROM
exec 8>&-

# Stopped by Ctrl-C, the trainer writes a checkpoint; killed, it goes on from the last one.
echo "== training: $STEPS steps of $BATCH_TOKENS tokens"
echo "$settings" > "$OUT.settings"
last=$(printf '%08d' "$STEPS")
if [ -e "$OUT/DONE_$last" ]; then
  echo "$OUT/DONE_$last is there"
elif compgen -G "$OUT/DONE_*" > /dev/null; then
  "./$trainer" -y -o "$OUT" -x "$STEPS" -v "$VALIDATION" -n "$CHECKPOINT"
else
  [ ! -e "$OUT" ] || mv -v "$OUT" "$OUT.old-$(date +%s)" # a run without a checkpoint
  "./$trainer" -o "$OUT" -i "${DATA}_train_*.bin" -j "${DATA}_val_*.bin" -e "$MODEL" \
    -t "$CONTEXT" -b "$BATCH" -d "$BATCH_TOKENS" -x "$STEPS" -u "$WARMUP" -l "$LR" -q 0 -c 0.1 \
    -v "$VALIDATION" --val-rows "$VAL_ROWS" -s "$STEPS" -n "$CHECKPOINT"
fi

# On the CPU, also after a GPU's run, with the run's own scales. Two cores take 30 to 60 minutes.
echo "== HellaSwag"
"$score" "$OUT" "$TASKS" -n "$TASK_COUNT"

export=("$PYTHON" data/hf.py export "$OUT/model_$last.bin" --out "$OUT/hf")
tokenizer=$(dirname "$DATA")/gpt2_tokenizer.bin
[ ! -e "$tokenizer" ] || export+=(--tokenizer "$tokenizer")
echo "== done; for Hugging Face's tools:"
printf '%q ' "${export[@]}"
echo
