#!/usr/bin/env bash
# Faults of several processes: what is refused, by name; a value that is not finite in one of them.
set -eu
. "$(dirname "$0")/env.sh"
. "$(dirname "$0")/mpi.sh"
build fp8 -march=native
build other -march=native -DCOMMIT='"other"'
gcc "${flags[@]}" -march=native train_gpt_fp8.c -o "$out/alone" -lm
t=$out/fp8
refused() { # status, words of the message, then mpirun's arguments
  local expected=$1 words=$2 status=0
  shift 2
  rm -rf "$out/new"
  timeout 60 mpirun "$@" > "$out/said" 2>&1 || status=$?
  [ $status = "$expected" ] || fail "'$words': status $status: $(cat "$out/said")"
  grep -q -e "$words" "$out/said" || fail "expected '$words', found: $(cat "$out/said")"
  [ ! -e "$out/new" ] || fail "'$words': a refused run left files"
}
new=(-t 64 -b 2 -x 6 -e d1 -o "$out/new")
cp data/tales.d/val.txt "$out/here.txt"
mkdir "$out/there" && tr a b < "$out/here.txt" > "$out/there/here.txt"
refused 2 'total-batch: expected a multiple of .* 384' -np 2 "$t" "${new[@]}" --shards 3 -d 512
refused 2 'shards: the run has 2; start at most' -np 3 "$t" "${new[@]}" --shards 2
refused 2 'rank 1: its lr is' -np 1 "$t" "${new[@]}" : -np 1 "$t" "${new[@]}" -l 1e-4
refused 2 "rank 1: its commit is 'other'" -np 1 "$t" "${new[@]}" : -np 1 "$out/other" "${new[@]}"
refused 2 'rank 1: its data_hash is' -np 1 -wdir "$out" "$t" -i here.txt "${new[@]}" : \
  -np 1 -wdir "$out/there" "$t" -i here.txt "${new[@]}"
refused 2 'rank 1: .*gone.txt: ' -np 1 "$t" -i here.txt "${new[@]}" -i "$out/here.txt" : \
  -np 1 "$t" "${new[@]}" -i gone.txt
mpi 2 "$t" -t 64 -b 2 -x 1 -e d1 -o "$out/old"
refused 2 'rank 1: its -y, --eval and checkpoint are 1, 1, 1, those' -np 1 "$t" -y -o "$out/old" \
  -x 6 : -np 1 "$t" -y -o "$out/old" --eval
refused 2 'make MPI=1' -np 2 "$out/alone" "${new[@]}"
refused 2 'prompt: start one process' -np 2 "$t" --prompt Once
sed 's/libmpi\.so\.[0-9]/libmpi.so.X/g' "$t" > "$out/missing"
chmod +x "$out/missing"
status=0
"$out/missing" "${new[@]}" > "$out/said" 2>&1 || status=$?
grep -q 'libmpi.so.X' "$out/said" || fail "no MPI library: $status, $(cat "$out/said")"
[ $status = 127 ] || fail "no MPI library: status $status"
echo "ok   refused: batches, shards, options, builds, data, a build without MPI, no library, --eval"
# Faults planted into the second shard of the third step: of rank 1, which has one shard or two.
planted() { # words of the message, after a line, a statement
  local run status=0
  sed "/$2/a if (shard == 1 \&\& in->index == 2) $3;" train_gpt_fp8.c > "$out/planted.c"
  ! cmp -s train_gpt_fp8.c "$out/planted.c" || fail "no line '$2'"
  OMPI_CC=gcc mpicc -DUSE_MPI -I. "${flags[@]}" -march=native "$out/planted.c" -o "$out/planted" -lm
  for run in "3 $out/planted" "2 $out/planted --shards 4"; do
    rm -rf "$out/new"
    # shellcheck disable=SC2086 # words
    mpi $run "${new[@]}" -n 1 || status=$?
    [ $status = 3 ] || fail "status $status: $(cat "$out/said")"
    grep -q "step 3: .*$1 of rank 1; .*state_00000002.bin" "$out/said" || fail "$(cat "$out/said")"
    echo "ok   $(grep -o 'step 3: .*of rank 1' "$out/said" | head -1)"
  done
}
planted 'the loss is not finite; .*activation fc of layer 0' 'g->first = i == 0;' \
  'gpt_param(g, g->master, FCB, 0)[0] = NAN'
planted 'the gradient is not finite; .*gradient of qkvw of layer 0' \
  'gpt_backward(g, g->tokens, g->B' 'gpt_param(g, g->grad, QKVW, 0)[7] = NAN'
