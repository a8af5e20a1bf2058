#!/usr/bin/env bash
# How several processes end: Ctrl-C and SIGUSR1 at mpirun, kill -9 of one of them. All end within
# seconds, and the newest checkpoint resumes to the bits of a run that went on.
set -eu
. "$(dirname "$0")/env.sh"
. "$(dirname "$0")/mpi.sh"
build fp8 -march=native
run=(-e d1 -t 64 -b 2 -x 400 -d 512 -v 0 -s 0 -n 50 --shards 4)
last=00000400
mpi 2 "$out/fp8" "${run[@]}" -o "$out/whole"
wait_for() { # file
  for _ in $(seq 200); do [ ! -e "$1" ] || return 0; sleep 0.05; done
  fail "no $1: $(cat "$out/said")"
}
ended() { # name, most seconds, process: waits, then resumes
  local begin status=0
  begin=$(date +%s)
  wait "$3" || status=$?
  [ $(($(date +%s) - begin)) -le "$2" ] || fail "$1: ended only after $(($(date +%s) - begin)) s"
  ! pgrep -f "$out/fp8 .*$out/$1\$" > "$out/left" || fail "$1: processes are left"
  [ ! -e "$out/$1/DONE_$last" ] || fail "$1: it was done before"
  mpi 3 "$out/fp8" -y -o "$out/$1"
  grep -q 'resumed from step' "$out/said" || fail "$1: no resume"
  same "$1" whole
  echo "ok   $1: status $status, $(grep -o 'resumed from step [0-9]*' "$out/said"), the same end"
}
begin() { # name: mpirun in the background, in a session of its own, so that it gets signals
  rm -rf "${out:?}/$1"
  setsid python3 -c 'import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])' mpirun -np 2 "$out/fp8" "${run[@]}" -o "$out/$1" \
    > "$out/said.$1" 2>&1 &
  wait_for "$out/$1/DONE_00000050"
}
begin interrupt
kill -INT $!
ended interrupt 6 $!
grep -q 'interrupted after step' "$out/said.interrupt" ||
  echo "     (Open MPI did not pass on what rank 0 said)"
begin usr1
kill -USR1 $!
ended usr1 6 $!
grep -q 'interrupted after step' "$out/said.usr1" || fail "usr1: $(cat "$out/said.usr1")"
begin kill
pkill -9 -n -f "$out/fp8 .*$out/kill\$"
ended kill 6 $!
grep -q 'exited on signal 9' "$out/said.kill" || fail "kill: $(cat "$out/said.kill")"
