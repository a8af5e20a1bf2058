#!/usr/bin/env bash
# dev/paper with damaged pictures, wrong options, damaged rows and a run that diverges: each is
# refused or reported in one line, and nothing is lost.
set -eu
. "$(dirname "$0")/env.sh"
make all build/compare build/lab/ptq build/paper/tables data/glyphs.d/train.bin
for p in fp8 fp16 bf16 fp32; do make build/paper/{cnn,lstm}_$p; done

ends() { # exit status, what the one line on stderr says, command
  local expected=$1 text=$2 status=0
  shift 2
  "$@" > build/ends.out 2> build/ends.err || status=$?
  if [ $status != "$expected" ] || ! grep -q "$text" build/ends.err ||
    [ "$(wc -l < build/ends.err)" != 1 ]; then
    fail "$*: expected status $expected and '$text', found $status and '$(cat build/ends.err)'"
  fi
}
cnn=build/paper/cnn_fp16 lstm=build/paper/lstm_fp8 tables=build/paper/tables
rm -rf build/damaged build/rows
cp -r data/glyphs.d build/damaged
printf x | dd of=build/damaged/test.bin bs=1 seek=5000 conv=notrunc status=none
ends 2 "damaged: its checksum" $cnn --data build/damaged
truncate -s 5000 build/damaged/test.bin
ends 2 "test.bin: expected a size in bytes" $cnn --data build/damaged
ends 2 "cannot open" $cnn --data build/absent
ends 2 "unknown option '--stps'" $cnn --stps 3
ends 2 "option --steps: expected a whole number" $cnn --steps 1.5
ends 2 "only the fp8 build has recipes" $cnn --recipe mx
ends 2 "found blocks for x" $lstm --recipe mx
ends 2 "found e2m1, split or stochastic for dy" $lstm --recipe dy:stochastic
ends 2 "expected lm, numbers or dates" $lstm --task words
ends 2 "option --batch" $lstm --batch 0
ends 3 "not finite" $cnn --steps 1 --batch 16 --channels 4 --lr 1000
grep -q "^result	diverged	diverged	" build/ends.out

ends 2 "cannot open" $tables build/absent
cp -r dev/paper/results build/rows
sed '$p' dev/paper/results/rows.tsv > build/rows/rows.tsv
ends 2 "two rows of" $tables build/rows
sed '$s/\t[0-9.]*\t[0-9.]*\t[0-9]*$/\t?\t1\t1/' dev/paper/results/rows.tsv > build/rows/rows.tsv
ends 2 "expected a number or diverged, found '?'" $tables build/rows

ends 2 "expected paper, full or short" dev/paper/runs.sh all build/rows
rm -rf build/rows
mkdir build/rows
(flock 9 && ends 2 "another runs.sh" dev/paper/runs.sh short build/rows) 9> build/rows/lock
printf '# glyphs\tcnn --steps 7\n' > build/rows/rows.tsv
ends 2 "use another directory" dev/paper/runs.sh short build/rows
