#!/usr/bin/env bash
# shellcheck disable=SC2086,SC2016 # names without blanks; a script for sh
# Runs an mpirun over two network namespaces, which have names as two hosts and a link between them:
# dev/ci/two_hosts.sh mpirun -np 4 PROGRAM .. Prints `skip ..` with status 1 if they cannot be made.
set -eu
if [ "${1:-}" = --agent ]; then # mpirun starts its daemon on the other host: host, command
  host=$2
  shift 2
  exec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"
fi
me=$(realpath "$0")
a=host-a-$$ b=host-b-$$
end() {
  ip netns del $a 2> /dev/null || true
  ip netns del $b 2> /dev/null || true
}
trap end EXIT
make_hosts() {
  ip netns add $a && ip netns add $b &&
    ip link add va$$ type veth peer name vb$$ &&
    ip link set va$$ netns $a name wire && ip link set vb$$ netns $b name wire &&
    ip -n $a addr add 10.77.0.1/24 dev wire && ip -n $b addr add 10.77.0.2/24 dev wire || return 1
  for host in $a $b; do
    ip -n $host link set dev lo up && ip -n $host link set dev wire up || return 1
  done
  unshare --uts true
}
if ! make_hosts 2> /dev/null; then
  echo "skip two hosts: network namespaces are not allowed here"
  exit 1
fi
hosts=$(mktemp)
printf '%s slots=2\n' $a $b > "$hosts"
shift # mpirun
ip netns exec $a unshare --uts sh -c 'hostname "$1"; shift; exec timeout 120 "$@"' sh $a \
  mpirun --hostfile "$hosts" --mca plm_rsh_agent "$me --agent" --mca btl tcp,self \
  --mca oob_tcp_if_include wire --mca btl_tcp_if_include 10.77.0.0/24 \
  -x OMP_NUM_THREADS "$@"
rm "$hosts"
