#!/usr/bin/env bash
# The committed rows under dev/findings are in the words of --recipe, build/compare --pool makes
# every committed summary of them again, and adjust.py reads them.
set -eu
. "$(dirname "$0")/env.sh"
make build/compare
"$python" dev/check/recipe_words.py --test
"$python" dev/check/check_pool.py
"$python" dev/findings/adjust.py > build/adjusted
grep '^== fp8 - bf16 in every file' build/adjusted
