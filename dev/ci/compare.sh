#!/usr/bin/env bash
# A comparison of four small arms: its runs and pictures are whole, damaged runs are made again with
# the same results, and rows that are pooled give the same summary. It stays in build/compared.
set -u
. "$(dirname "$0")/env.sh"
out=build/compared
make all build/compare || exit 1
rm -rf $out build/pooled
compare() { build/compare "$@" || fail "build/compare $*: status $?"; }
whole() {
  local rows
  rows=$(grep -c whole $out/runs.tsv)
  [ "$rows" = 8 ] || fail "expected 8 whole runs, found $rows"
}
compare --jobs 2 --arms "$arms" --seeds 2 --out $out -- "${arms_run[@]}"
whole
curves=$(grep -c 'stroke-width="1.8"' $out/curves.svg)
[ "$curves" = 7 ] || fail "expected 7 curves in curves.svg, found $curves"

# Four runs are damaged: a row is missing, a loss is no number, a log is cut, a log is gone.
cut -f 1-5 $out/runs.tsv > build/undamaged
sed -i '/^20\t/d' $out/bf16-2/log.tsv
awk -F '\t' -v OFS='\t' '$1 == 40 { $4 = "garbage" } 1' $out/fp16-1/log.tsv > build/garbage
mv build/garbage $out/fp16-1/log.tsv
rm $out/fp8-2/DONE_*
head -c 2500 $out/fp8-2/log.tsv > build/truncated
mv build/truncated $out/fp8-2/log.tsv
rm $out/bf16-1/log.tsv
compare --arms "$arms" --seeds 2 --out $out -- "${arms_run[@]}"
whole
cut -f 1-5 $out/runs.tsv | cmp - build/undamaged || fail "damaged runs have other results"

# The rows of each seed, pooled again, give the same gaps.
for seed in 1 2; do
  awk -F '\t' -v s=$seed '/^#/ || $1 == "arm" || $2 == s' $out/runs.tsv > build/rows-$seed.tsv
done
compare --arms "$arms" --pool build/rows-1.tsv,build/rows-2.tsv --out build/pooled
cmp $out/runs.tsv build/pooled/runs.tsv || fail "pooled runs.tsv"
cmp <(cut -f 1-20,26 $out/summary.tsv) <(cut -f 1-20,26 build/pooled/summary.tsv) ||
  fail "pooled summary.tsv"
