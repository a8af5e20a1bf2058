#!/usr/bin/env bash
# The C file and the CUDA file hold the same program: what stands between the lines
# `// ---- program begins` and `// ---- program ends` is the same text in both, and not empty. So is
# what stands between `// ---- rules begin` and `// ---- rules end`, and likewise `scales of blocks`
# and `slices`, if one of the files has these.
#
#   dev/check/same_program.sh [C-FILE CUDA-FILE]           compares; exit status 0: the same
#   dev/check/same_program.sh --write [C-FILE CUDA-FILE]   copies the C file's text to the CUDA file
set -eu
write=
if [ "${1:-}" = --write ]; then
  write=1
  shift
fi
if [ $# = 0 ]; then
  cd "$(dirname "$0")/../.."
  set -- train_gpt_fp8.c train_gpt_fp8.cu
fi
[ $# = 2 ] || { echo "usage: same_program.sh [--write] [C-FILE CUDA-FILE]" >&2; exit 2; }
c_file=$1 cuda_file=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

lines_of() { awk -v mark="// ---- $1" '$0 == mark || index($0, mark " ") == 1 { print NR }' "$2"; }
section() { # first mark, last mark, file, output: the text between the marks, or exit status 1
  local first last
  first=$(lines_of "$1" "$3" | paste -sd " ")
  last=$(lines_of "$2" "$3" | paste -sd " ")
  if ! [[ $first =~ ^[0-9]+$ && $last =~ ^[0-9]+$ ]] || [ "$last" -le "$first" ]; then
    echo "FAIL $3: expected one line '// ---- $1' and one line '// ---- $2' after it," \
      "found the first in line ${first:-none} and the last in line ${last:-none}"
    return 1
  fi
  awk -v first="$first" -v last="$last" 'NR > first && NR < last' "$3" > "$4"
  grep -q '[^[:space:]]' "$4" || { echo "FAIL $3: nothing stands after '// ---- $1'"; return 1; }
}
same() { # first mark, last mark
  local first
  section "$1" "$2" "$c_file" "$work/c" && section "$1" "$2" "$cuda_file" "$work/cuda" || return 1
  if [ "$write" ] && ! cmp -s "$work/c" "$work/cuda"; then
    first=$(lines_of "$1" "$cuda_file")
    { head -n "$first" "$cuda_file" && cat "$work/c" &&
      tail -n +"$(lines_of "$2" "$cuda_file")" "$cuda_file"; } > "$work/new"
    cat "$work/new" > "$cuda_file"
    echo "     $cuda_file: wrote the text after '// ---- $1'"
    cp "$work/c" "$work/cuda"
  fi
  if ! diff "$work/c" "$work/cuda" > "$work/difference"; then
    echo "FAIL the text after '// ---- $1' differs (<: $c_file, >: $cuda_file):"
    head -n 20 "$work/difference"
    return 1
  fi
  echo "ok   $(wc -l < "$work/c") lines after '// ---- $1' are the same in $c_file and $cuda_file"
}

failed=0
same "program begins" "program ends" || failed=1
for part in rules "scales of blocks" slices; do
  if grep -qE "^// ---- $part (begin|end)( |$)" "$c_file" "$cuda_file"; then
    same "$part begin" "$part end" || failed=1
  fi
done
exit $failed
