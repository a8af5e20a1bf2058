#!/usr/bin/env bash
# The statistics of a comparison against SciPy's; and its page in a browser: of whole runs, of runs
# that diverged, and of a run whose log holds markup. The last one changes build/compared.
set -eu
. "$(dirname "$0")/env.sh"
[ -e build/compared/report.html ] || dev/ci/compare.sh
[ -e build/diverged/report.html ] || dev/ci/compare_errors.sh
"$python" dev/check/check_statistics.py
"$python" dev/check/test_report.py build/compared/report.html
"$python" dev/check/test_report.py build/diverged/report.html --diverged
cp build/compared/fp8-1/scales.tsv build/scales.tsv
trap 'mv build/scales.tsv build/compared/fp8-1/scales.tsv' EXIT
sed -i -E 's|\t[a-z]+\.(x\|w\|dy)\t|\t<img/src=x>.\1\t|' build/compared/fp8-1/scales.tsv
status=0
build/compare --arms "$arms" --seeds 2 --out build/compared -- "${arms_run[@]}" || status=$?
[[ $status =~ ^[013]$ ]] || fail "build/compare: status $status"
"$python" dev/check/test_report.py build/compared/report.html --markup
