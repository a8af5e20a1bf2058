#!/usr/bin/env bash
# What a comparison refuses, each with exit status 2; and an arm that diverges: the comparison says
# so, and trains it again only when its directory is gone. That one stays in build/diverged.
set -u
. "$(dirname "$0")/env.sh"
[ -e build/compared/summary.tsv ] && [ -e build/rows-1.tsv ] && [ -e build/rows-2.tsv ] ||
  dev/ci/compare.sh || exit 1
rm -rf build/nonsense build/lr build/diverged
refused() { # words for build/compare
  build/compare "$@" > build/refused 2>&1
  local status=$?
  [ $status = 2 ] || fail "build/compare $*: expected status 2, found $status"
}
says() { grep "$1" build/refused || fail "expected '$1', found '$(cat build/refused)'"; }
refused --arms fp16,fp8 --seeds 2 --out build/compared -- "${arms_run[@]}" -l 1e-3
refused --arms fp64 -- "${arms_run[@]}"
refused --arms "fp8,fp8 " -- "${arms_run[@]}"
refused --arms "$arms" --pool build/compared/summary.tsv
refused --seeds 3-2
refused --arms "fp16 --seed 7" -- "${arms_run[@]}"
sed 's/-x 40/-x 41/' build/rows-2.tsv > build/rows-3.tsv
refused --arms "$arms" --pool build/rows-1.tsv,build/rows-3.tsv
says 'is of other options'
sed 's/\t3\./\t4./' build/rows-1.tsv > build/rows-4.tsv
refused --arms "$arms" --pool build/rows-1.tsv,build/rows-4.tsv
says 'is there twice'
refused --arms "fp8 --nonsense" --out build/nonsense -- "${arms_run[@]}"
refused --arms "fp16,fp8 -l 0.1" --seeds 1 --out build/lr -- "${arms_run[@]}"

diverge() { # a learning rate at which both arms diverge: status 1
  build/compare --arms "fp16,fp8 -l 1e20 --grad-clip 0" --seeds 1 --out build/diverged \
    -- -e d1 -x 40 -v 2 -t 64 -l 1e20 --grad-clip 0
  local status=$?
  [ $status = 1 ] || fail "arms that diverge: expected status 1, found $status"
}
diverge
grep -c 'diverged' build/diverged/summary.tsv || fail "summary.tsv does not say 'diverged'"
cp build/diverged/fp16-1.out build/diverged.out
diverge
cmp build/diverged.out build/diverged/fp16-1.out || fail "a diverged arm was trained again"
rm -r build/diverged/fp16-1
diverge
[ -f build/diverged/fp16-1/log.tsv ] || fail "an arm without a directory was not trained again"
