#!/bin/sh
# The proof that connections survive, run in fresh pid, mount and network namespaces:
#   proof.sh STASIS STREAM FOLDER OWN PEER CONNECTIONS ROUNDS SECONDS [LOCK] [KILL]
# A second network namespace, joined by a veth pair, has a client that sends without a pause to a server here, which is dumped,
# killed and restored ROUNDS times, SECONDS after its death. With KILL the engine is killed so many seconds (a
# fraction) into a first attempt at each dump; with "at:N" first attempts at both dump and restore are killed at step N, which
# is one more in each round (STASIS_KILL_AT).
set -eu
stasis=$1 stream=$2 dir=$3 own=$4 peer=$5 n=$6 rounds=$7 pause=$8 lock=${9:-auto} kill=${10:-}
mkdir -p "$dir"
wait_for() {
	i=0
	while [ ! -e "$dir/$1" ]; do
		i=$((i + 1))
		[ $i -lt 600 ] || { echo "FAIL no $1"; cat "$dir"/*.out; exit 1; }
		sleep 0.05
	done
}
unshare -n sleep 1000 &
far=$!
sleep 0.2
ip link set lo up
ip link add v0 type veth peer name v1 netns $far
case $own in
*:*) bits=64 dad=nodad ;;
*) bits=24 dad= ;;
esac
ip addr add "$own/$bits" dev v0 $dad
ip link set v0 up
nsenter -t $far -n ip addr add "$peer/$bits" dev v1 $dad
nsenter -t $far -n ip link set v1 up
nsenter -t $far -n "$stream" watch v1 "$dir" >"$dir/watch.out" 2>&1 &
watcher=$!
wait_for watching
setsid "$stream" serve "$own" 7777 "$dir" </dev/null >"$dir/serve.out" 2>&1 &
server=$!
wait_for ready
nsenter -t $far -n "$stream" send "$own" 7777 "$n" "$dir" >"$dir/send.out" 2>&1 &
client=$!
wait_for sending
sleep 0.3
round=0
while [ $round -lt "$rounds" ]; do
	round=$((round + 1))
	case $kill in
	at:*)
		step=$((${kill#at:} + round - 1))
		mkdir -p "$dir/img-$round"
		STASIS_KILL_AT=$step "$stasis" dump -t "$server" -D "$dir/img-$round" -o dump-killed.log --tcp-established --network-lock "$lock" 2>/dev/null && echo "not killed: dump has no step $step"
		sleep 0.3
		;;
	esac
	if [ -n "$kill" ] && [ "${kill#at:}" = "$kill" ]; then
		"$stasis" dump -t "$server" -D "$dir/img-$round" -o dump-killed.log --tcp-established --network-lock "$lock" 2>/dev/null &
		engine=$!
		sleep "$kill"
		kill -9 $engine 2>/dev/null || true
		wait $engine 2>/dev/null || true
		sleep 0.3
	fi
	if [ -d "/proc/$server" ] && ! grep -q '^State:.[ZX]' "/proc/$server/status"; then
		mkdir -p "$dir/img-$round"
		"$stasis" dump -t "$server" -D "$dir/img-$round" -v4 -o dump.log --tcp-established --network-lock "$lock" || {
			echo "FAIL dump $round"
			cat "$dir/img-$round/dump.log"
			exit 1
		}
	fi
	sleep "$pause"
	case $kill in
	at:*)
		STASIS_KILL_AT=$step "$stasis" restore -d -D "$dir/img-$round" -o restore-killed.log --tcp-established --network-lock "$lock" 2>/dev/null && {
			echo "not killed: restore has no step $step"
			sleep 0.5
			continue
		}
		sleep 0.3
		;;
	esac
	"$stasis" restore -d -D "$dir/img-$round" -v4 -o restore.log --tcp-established --network-lock "$lock" || {
		echo "FAIL restore $round"
		cat "$dir/img-$round/restore.log"
		exit 1
	}
	sleep 0.5
done
touch "$dir/stop"
wait $client || true
touch "$dir/watched"
wait $watcher || true
cat "$dir/serve.out" "$dir/watch.out" "$dir/send.out"
