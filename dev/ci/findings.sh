#!/usr/bin/env bash
# The committed rows under dev/findings are in the words of --recipe, and build/compare --pool makes
# every committed summary of them again.
set -eu
. "$(dirname "$0")/env.sh"
make build/compare
"$python" dev/check/recipe_words.py --test
"$python" dev/check/check_pool.py
