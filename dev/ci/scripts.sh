#!/usr/bin/env bash
# Every script is well formed: bash -n and shellcheck for the shell's, compilation for Python's.
# Steps of CI have at most 60 lines of 100 columns. `make help` names every target of the Makefile.
set -u
. "$(dirname "$0")/env.sh"
failed=0
wrong() {
  echo "FAIL $*"
  failed=1
}
mapfile -t files < <(git ls-files -co --exclude-standard)
shell=() count=0
for f in "${files[@]}"; do
  [ -f "$f" ] || continue
  if [[ $f == *.sh ]] || head -c 60 "$f" | head -1 | grep -qaE '^#!.*\b(bash|sh)$'; then
    shell+=("$f")
    bash -n "$f" || wrong "$f: bash -n"
  elif [[ $f == *.py ]]; then
    python3 -c 'import sys; compile(open(sys.argv[1]).read(), sys.argv[1], "exec")' "$f" ||
      wrong "$f: does not compile"
    count=$((count + 1))
  fi
done
shellcheck "${shell[@]}" || wrong "shellcheck"
for f in dev/ci/*.sh; do
  awk 'length > 100 { print FILENAME ":" FNR ": " length " columns"; bad = 1 }
    END { if (NR > 60) { print FILENAME ": " NR " lines"; bad = 1 } exit bad }' "$f" || failed=1
  sed -n '2,3p' "$f" | grep -q '^# ' || wrong "$f: its first comment must say what it checks"
done
make help > build/make-help || wrong "make help"
for target in $(make -npq 2> build/make-database | sed -n 's/^\.PHONY: //p'); do
  case $target in */*) continue ;; esac
  grep -qw -- "$target" build/make-help || wrong "make help does not name $target"
done
echo "${#shell[@]} shell scripts, $count Python files"
[ ${#shell[@]} -gt 0 ] && [ $count -gt 0 ] && exit $failed
