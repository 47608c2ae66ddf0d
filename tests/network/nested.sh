#!/bin/sh
# Connections of a network namespace below that of the tree's root, run in fresh pid, mount and network namespaces:
#   nested.sh STASIS STREAM FOLDER ROUNDS LOCK
# The root of the tree has a network namespace of its own, the server one below; a veth pair leads from there to here, outside of the
# tree, where a client sends without a pause and a witness sees all packets. The tree is dumped and lives on, then dumped, killed and restored
# ROUNDS times; the pair goes with the namespace, and the end here is raised again as soon as it is there.
set -eu
stasis=$1 stream=$2 dir=$3 rounds=$4 lock=$5
mkdir -p "$dir"
wait_for() {
	i=0
	while [ ! -e "$dir/$1" ]; do
		i=$((i + 1))
		[ $i -lt 600 ] || { echo "FAIL no $1"; cat "$dir"/*.out; exit 1; }
		sleep 0.05
	done
}
cat >"$dir/tree.sh" <<'TREE'
unshare -n sh -c 'touch "$2/inside"; while [ ! -e "$2/joined" ]; do sleep 0.05; done; exec "$1" serve 10.9.0.1 7777 "$2"' sh "$1" "$2" &
echo $! >"$2/server"
wait
TREE
ip link set lo up
setsid unshare -n sh "$dir/tree.sh" "$stream" "$dir" </dev/null >"$dir/serve.out" 2>&1 &
root=$!
wait_for inside
read -r server <"$dir/server"
raise() {
	until ip addr add 10.9.0.2/24 dev v0 2>/dev/null; do sleep 0.002; done
	ip link set v0 up
}
ip link add v0 type veth peer name v1 netns "$server"
nsenter -t "$server" -n ip addr add 10.9.0.1/24 dev v1
nsenter -t "$server" -n ip link set v1 up
raise
touch "$dir/joined"
"$stream" watch any "$dir" >"$dir/watch.out" 2>&1 &
watcher=$!
wait_for watching
wait_for ready
"$stream" send 10.9.0.1 7777 5 "$dir" >"$dir/send.out" 2>&1 &
client=$!
wait_for sending
sleep 0.3
dump() {
	mkdir -p "$dir/$1"
	"$stasis" dump -t $root -D "$dir/$1" -v4 -o dump.log --tcp-established --network-lock "$lock" $2 || {
		echo "FAIL dump $1"
		tail -20 "$dir/$1/dump.log"
		exit 1
	}
}
dump alive --leave-running
sleep 0.3
round=0
while [ $round -lt "$rounds" ]; do
	round=$((round + 1))
	dump "img-$round" ""
	i=0
	while ip link show v0 >/dev/null 2>&1; do
		i=$((i + 1))
		[ $i -lt 500 ] || { echo "FAIL the namespace of a dead tree stays"; exit 1; }
		sleep 0.01
	done
	raise &
	"$stasis" restore -d -D "$dir/img-$round" -v4 -o restore.log --tcp-established --network-lock "$lock" --external "veth[v1]:v0" || {
		echo "FAIL restore $round"
		tail -20 "$dir/img-$round/restore.log"
		exit 1
	}
	sleep 1
done
touch "$dir/stop"
wait $client || true
touch "$dir/watched"
wait $watcher || true
cat "$dir/serve.out" "$dir/watch.out" "$dir/send.out"
