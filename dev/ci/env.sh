# shellcheck shell=bash disable=SC2034 # the steps use these variables
# What each step of CI reads first: it goes to the repository's root, and sets what several steps
# share. It checks nothing itself.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
export LC_ALL=C SHELL=/bin/sh # the shell of script(1)
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x build/venv/bin/python ]; then python=build/venv/bin/python; fi
short=(-e d2 -t 64 -b 2 -x 6 -d 256 -v 3 -m 2 -s 3 -g 20 -n 3) # a short run of any trainer
arms="fp16,bf16,fp8,fp8 --recipe scale=1" # a small comparison
arms_run=(-e d1 -x 40 -v 20 -t 64)
fail() {
  echo "FAIL $*"
  exit 1
}
