#!/usr/bin/env bash
# The lesson (dev/lesson): its page and pictures are those of its rows, one of its runs is made
# again bit for bit, a step runs twice, and bad input is refused by name.
set -eu
. "$(dirname "$0")/env.sh"
make all build/lesson/picture build/lesson/head build/lab/inject
dev/lesson/check.sh

# A step alone; the second call finds what the first has made, and draws the same pictures.
out=build/lesson/one
rm -rf $out
dev/lesson/lesson.sh spike $out > build/lesson/first.txt
cp $out/spike-loss.svg build/lesson/first.svg
dev/lesson/lesson.sh spike $out | tee build/lesson/second.txt
cmp build/lesson/first.svg $out/spike-loss.svg || fail "lesson.sh: the second call draws otherwise"
cmp $out/spike-loss.svg dev/lesson/pictures/spike-loss.svg || fail "spike-loss.svg: another picture"
grep -c '<svg' $out/lesson.html | grep -x 2 || fail "lesson.html: expected two pictures"

refused() { # TEXT, command..: status 2, and the text on stderr
  local text=$1 status=0
  shift
  "$@" > build/lesson/out.txt 2> build/lesson/refused.txt || status=$?
  [ $status = 2 ] || fail "$*: expected status 2, found $status"
  grep -F -- "$text" build/lesson/refused.txt || fail "$*: does not say '$text'"
}
refused "found 'spkie'" dev/lesson/lesson.sh spkie $out
refused "found 3 arguments" dev/lesson/lesson.sh spike $out more
refused "expected statements or write DIR" dev/lesson/check.sh everything
refused "found no file" build/lesson/picture $out/none.tsv
printf '# picture\tpie\n' > $out/pie.tsv
refused "found 'pie'" build/lesson/picture $out/pie.tsv
printf '# picture\tlines\nstep\ta\n1\t2\n2\n' > $out/short.tsv
refused "row 2: expected 2 columns, found 1" build/lesson/picture $out/short.tsv
printf '# picture\tlines\nstep\ta\n1\ttwo\n' > $out/word.tsv
refused "found 'two'" build/lesson/picture $out/word.tsv
printf '# picture\tlines\n# scale\tlog\nstep\ta\n1\t0\n' > $out/log.tsv
refused "above 0" build/lesson/picture $out/log.tsv
refused "expected -j TEXT" build/lesson/head $out/none.bin
