#!/usr/bin/env bash
# A user's first two commands after `make`: FP16, then FP8, without options. The second prints the
# gap to the first, which the README's table has.
set -eu
. "$(dirname "$0")/env.sh"
here=$PWD
out=build/first-hour
rm -rf $out
mkdir -p $out
ln -s "$here/data" $out/data
cd $out
"$here/train_gpt_fp16" > fp16.txt
"$here/train_gpt_fp8" > fp8.txt
line=$(grep 'validation after step 1500' fp8.txt) || fail "no last validation in $out/fp8.txt"
[[ $line == *"loss 0.969694"*"gap to fp16 +0.0191"* ]] ||
  fail "expected loss 0.969694 and a gap to fp16 of +0.0191.., found: $line"
grep -q "^compare .*build/compare --logs 'log/fp16' 'log/fp8'" fp8.txt ||
  fail "$out/fp8.txt does not say how to compare the two runs"
rows=$(wc -l < fp8.txt)
[ "$rows" -lt 300 ] || fail "$out/fp8.txt has $rows lines"
echo "$line"
