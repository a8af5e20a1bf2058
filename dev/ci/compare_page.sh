#!/usr/bin/env bash
# The statistics of a comparison against SciPy's; and its page in a browser: of whole runs, of runs
# that diverged, and of a run whose log holds markup.
set -eu
. "$(dirname "$0")/env.sh"
[ -e build/compared/report.html ] || dev/ci/compare.sh
[ -e build/diverged/report.html ] || dev/ci/compare_errors.sh
page() { # makes the page of build/compared from its logs again
  build/compare --arms "$arms" --seeds 2 --out build/compared -- "${arms_run[@]}"
}
"$python" dev/check/check_statistics.py
page
"$python" dev/check/test_report.py build/compared/report.html
"$python" dev/check/test_report.py build/diverged/report.html --diverged
scales=build/compared/fp8-1/scales.tsv
cp $scales build/scales.tsv
trap 'mv build/scales.tsv $scales' EXIT
sed -i -E 's|\t[a-z]+\.(x\|w\|dy)\t|\t<img/src=x>.\1\t|' $scales
page
"$python" dev/check/test_report.py build/compared/report.html --markup
