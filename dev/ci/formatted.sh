#!/usr/bin/env bash
# All C, C++ and CUDA sources are formatted as .clang-format says.
set -eu
. "$(dirname "$0")/env.sh"
git ls-files '*.c' '*.h' '*.cu' '*.cpp' | xargs clang-format --dry-run -Werror
