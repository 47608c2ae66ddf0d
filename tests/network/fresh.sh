#!/bin/sh
# A container on a bridge whose network namespace is made anew for the restore, while its peer goes on sending; in fresh pid, mount
# and network namespaces:
#   fresh.sh STASIS CRIU STREAM FOLDER hold|bare
# With "hold" the new namespace is locked before its devices go up.
set -eu
stasis=$1 criu=$2 stream=$3 dir=$4 how=$5
mkdir -p "$dir/img"
wait_for() {
	i=0
	while [ ! -e "$dir/$1" ]; do
		i=$((i + 1))
		[ $i -lt 600 ] || { echo "FAIL no $1"; cat "$dir"/*.out; exit 1; }
		sleep 0.05
	done
}
namespace() {
	unshare -n sleep 1000 &
	ns=$!
	sleep 0.3
}
# a device on the bridge: NAMESPACE NAME ADDRESS MAC
port() {
	ip link add "$2" type veth peer name eth0 netns "$1" address "$4"
	ip link set "$2" master br0
	ip link set "$2" up
	nsenter -t "$1" -n ip addr add "$3/24" dev eth0
	nsenter -t "$1" -n ip link set lo up
	nsenter -t "$1" -n ip link set eth0 up
}
ip link add br0 type bridge
ip link set br0 up
namespace
far=$ns
port "$far" f0 10.9.0.2 02:00:00:00:00:02
namespace
web=$ns
port "$web" w0 10.9.0.1 02:00:00:00:00:01
nsenter -t "$far" -n "$stream" watch eth0 "$dir" >"$dir/watch.out" 2>&1 &
watcher=$!
wait_for watching
setsid nsenter -t "$web" -n "$stream" serve 10.9.0.1 7777 "$dir" </dev/null >"$dir/serve.out" 2>&1 &
server=$!
wait_for ready
nsenter -t "$far" -n "$stream" send 10.9.0.1 7777 5 "$dir" >"$dir/send.out" 2>&1 &
client=$!
wait_for sending
sleep 0.5
number=$(readlink "/proc/$web/ns/net" | tr -dc 0-9)
"$criu" dump -t $server -D "$dir/img" -v4 -o dump.log --tcp-established --external "net[$number]:web" || {
	cat "$dir/img/dump.log"
	echo "FAIL dump"
	exit 1
}
kill -9 "$web"
sleep 0.5
# as on another machine, or after a start of this one: what the dump has left on the bridge is gone
"$stasis" netlock release --all >"$dir/released"
namespace
web=$ns
[ "$how" = bare ] || "$stasis" netlock hold "/proc/$web/ns/net" || { echo "FAIL hold"; exit 1; }
port "$web" w1 10.9.0.1 02:00:00:00:00:01
# long enough for the peer to send again
sleep 3
"$criu" restore -d -D "$dir/img" -v4 -o restore.log --tcp-established --inherit-fd "fd[7]:web" 7<"/proc/$web/ns/net" || {
	cat "$dir/img/restore.log"
	echo "FAIL restore"
	exit 1
}
sleep 1
touch "$dir/stop"
wait $client || true
touch "$dir/watched"
wait $watcher || true
left=$("$stasis" netlock list | grep -c "$(readlink "/proc/$web/ns/net" | tr -dc 0-9)") || true
[ "$left" = 0 ] || echo "FAIL $left locks are left"
cat "$dir/serve.out" "$dir/watch.out" "$dir/send.out"
