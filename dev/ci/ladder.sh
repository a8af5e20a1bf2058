#!/usr/bin/env bash
# The ladder of products (dev/cpu): all seven rungs make the same bits, also at odd sizes.
set -eu
. "$(dirname "$0")/env.sh"
make build/ladder
build/ladder 96 100 130
build/ladder 37 53 129
