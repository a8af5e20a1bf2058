#!/usr/bin/env bash
# dev/run_gpt2_124M.sh, every step but the downloads, on a small model of bytes: killed before its
# first checkpoint and in the middle of training it goes on, with the bits of a run that was not
# killed; called once more it only scores. Another model, text or directory is refused.
set -eu
. "$(dirname "$0")/env.sh"
out=build/run_gpt2
rm -rf $out
mkdir -p $out
awk 'BEGIN { for (i = 0; i < 4000; i++)
  printf "{\"text\": \"A fox ran %d miles, %d dogs.\"}\n", i * 7 % 90, i % 13 }' > $out/web.jsonl
for i in {1..20}; do
  printf 'A fox ran %d miles. It\n%d\nmet a dog.\nmet\nran a mile.\nslept.\n' "$i" $((i % 4))
done > $out/tasks.txt

export OMP_NUM_THREADS=1 # a step takes a millisecond
export PYTHON=$python GPU='' MODEL=d1 CONTEXT=64 BATCH=2 BATCH_TOKENS=128 TOKENS=384000
export CHECKPOINT=100 VALIDATION=200 VAL_ROWS=8 TASK_COUNT=15
export DATA=$out/data/web DATA_FROM="--jsonl $out/web.jsonl --vocab-kind byte --val-tokens 9000"
export TASKS=$out/tasks.bin TASKS_FROM="--input $out/tasks.txt --vocab-kind byte"

# Starts it and kills it and all that it started as soon as a file is there.
killed_at() { # directory, file
  OUT=$1 setsid dev/run_gpt2_124M.sh > "$1.killed" 2>&1 &
  local pid=$!
  until [ -e "$1/$2" ]; do
    kill -0 $pid || fail "it ended before $1/$2: $(tail -3 "$1.killed")"
    sleep 0.02
  done
  kill -9 -- -$pid
  wait $pid || true
}
make train_gpt_fp8 build/eval/hellaswag_fp8
CHECKPOINT=3000 killed_at $out/run log.tsv
killed_at $out/run DONE_00000100
[ ! -e $out/run/DONE_00003000 ] || fail "the run was over before it was killed"
compgen -G "$out/run.old-*" > $out/old || fail "no run without a checkpoint was put aside"

OUT=$out/run dev/run_gpt2_124M.sh > $out/second
grep -q '^resumed from step' $out/second || fail "it did not go on: $(cat $out/second)"
! grep -q '^wrote' $out/second || fail "it made the data again"
OUT=$out/run dev/run_gpt2_124M.sh > $out/third
grep -q 'DONE_00003000 is there' $out/third || fail "it trained again: $(cat $out/third)"
[ "$(grep -c '^accuracy' $out/second)" = 2 ] || fail "no score"
cmp <(grep '^accuracy' $out/second) <(grep '^accuracy' $out/third)
refused() { # what its one line of stderr says, command
  status=0
  "${@:2}" dev/run_gpt2_124M.sh > $out/refused 2> $out/err || status=$?
  [ "$status $(grep -c "$1" $out/err) $(wc -l < $out/err)" = "2 1 1" ] ||
    fail "${*:2}: $status, $(cat $out/err)"
}
mkdir -p $out/thesis/chapter
refused 'another call' flock $out/run.lock env OUT=$out/run
refused 'name another OUT' env OUT=$out/run/ MODEL=d2 TOKENS=512000
refused 'name another DATA' env OUT=$out/new DATA_FROM="--jsonl other.jsonl"
refused 'expected a run or nothing' env OUT=$out/thesis
[ -d $out/thesis/chapter ]
OUT=$out/whole dev/run_gpt2_124M.sh > $out/fourth
cmp $out/run/model_00003000.bin $out/whole/model_00003000.bin
tail -5 $out/third
