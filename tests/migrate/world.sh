#!/bin/sh
# Two hosts and a client, run in fresh pid, mount and network namespaces:
#   world.sh STASIS FOLDER TESTS MEGABYTES ROUNDS DOWNTIME_MS [EXTRA OPTIONS OF BOTH VERBS]
# Hosts a and b are namespaces of their own (pid, mount, network), each joined to the client by a veth pair. A redis with
# MEGABYTES of keys moves from one to the other and back, ROUNDS times in all, while redis-benchmark and keys.py work with it over
# connections that stay. The service's address is on both hosts; the client's route to it is changed by a hook of the
# destination's, in the moment before the tree runs there. MIGRATE in the environment: further options of the source.
set -u
stasis=$1 dir=$2 tests=$3 size=$4 rounds=$5 downtime=$6
shift 6
mkdir -p "$dir/hooks" "$dir/none"
fail() {
	echo "FAIL $*"
	for f in "$dir"/*.out; do echo "--- $f"; tail -n 12 "$f"; done
	exit 1
}
ip link set lo up
n=1
for h in a b; do
	unshare -n -m -p --fork --mount-proc --kill-child sh -c 'while :; do sleep 1; done' &
	up=$!
	sleep 0.3
	eval "$h=$(cat /proc/$up/task/$up/children | tr -d ' ')"
	eval "host=\$$h"
	ip link add "v$h" type veth peer name eth0 netns "$host"
	ip addr add "10.78.$n.254/24" dev "v$h"
	ip link set "v$h" up
	nsenter -t "$host" -n ip addr add "10.78.$n.1/24" dev eth0
	nsenter -t "$host" -n ip addr add 10.77.0.1/32 dev lo
	nsenter -t "$host" -n ip link set lo up
	nsenter -t "$host" -n ip link set eth0 up
	nsenter -t "$host" -n ip route add default via "10.78.$n.254"
	n=2
done
# the way between the hosts, for what is migrated
echo 1 >/proc/sys/net/ipv4/ip_forward
on() {
	eval "host=\$$1"
	shift
	nsenter -t "$host" -n -m -p "$@"
}
at() { [ "$1" = a ] && echo 1 || echo 2; }
ip route add 10.77.0.1/32 via 10.78.1.1
mkfifo "$dir/route"
(while read -r h <"$dir/route"; do
	ip route replace 10.77.0.1/32 via "10.78.$(at "$h").1" && ip route flush cache
done) &
for h in a b; do
	mkdir -p "$dir/hooks/$h"
	printf '#!/bin/sh\necho %s >%s\n' "$h" "$dir/route" >"$dir/moved-$h"
	chmod +x "$dir/moved-$h"
	cat >"$dir/hooks/$h/route.json" <<END
{"version": "1.0.0", "hook": {"path": "$dir/moved-$h"}, "when": {"always": true}, "stages": ["pre-resume"]}
END
done
# numbers that are free on b, whatever runs there by then
on a sh -c 'echo 20000 >/proc/sys/kernel/ns_last_pid; exec setsid --fork redis-server "$@"' redis --bind 10.77.0.1 --port 6379 --save '' --appendonly no --dir "$dir" --protected-mode no \
	</dev/null >"$dir/redis.out" 2>&1 &
i=0
until redis-cli -h 10.77.0.1 ping >/dev/null 2>&1; do
	i=$((i + 1))
	[ $i -lt 100 ] || fail "redis does not start"
	sleep 0.1
done
python3 "$tests/keys.py" fill 10.77.0.1 6379 "$dir" "$size" || fail fill
redis-benchmark -h 10.77.0.1 -c 4 -n 1000000000 -r 100000 -d 100 -t set,get -q >"$dir/benchmark.out" 2>&1 &
benchmark=$!
python3 "$tests/keys.py" work 10.77.0.1 6379 "$dir" "$size" >"$dir/work.out" 2>&1 &
work=$!
i=0
until [ -e "$dir/working" ]; do
	sleep 0.1
done
from=a to=b done=0 met=0
while [ $done -lt "$rounds" ]; do
	done=$((done + 1))
	: >"$dir/receive.out"
	on $to ${TRACE:-} "$stasis" --json receive --listen "10.78.$(at $to).1:7766" --tcp-established --hooks-dir "$dir/hooks/$to" \
		"$@" >"$dir/receive.out" 2>&1 &
	receive=$!
	i=0
	until grep -q listening "$dir/receive.out"; do
		i=$((i + 1))
		[ $i -lt 200 ] || fail "nobody listens"
		sleep 0.05
	done
	root=$(on $from pgrep -o redis-server)
	on $from "$stasis" --json migrate "$root" --to "10.78.$(at $to).1:7766" --max-downtime "$downtime" --tcp-established \
		--hooks-dir "$dir/none" ${MIGRATE:-} "$@" >"$dir/migrate.out" 2>&1 || fail "migration $done"
	wait $receive || fail "receiver $done"
	grep '"downtime_us"' "$dir/migrate.out" | tail -n 1
	grep -q '"downtime_met":true' "$dir/migrate.out" && met=$((met + 1))
	kill -0 $benchmark 2>/dev/null || fail "the benchmark lost its connection"
	kill -0 $work 2>/dev/null || fail "the client has ended"
	touch "$dir/mark"
	i=0
	until [ -e "$dir/marked" ]; do
		i=$((i + 1))
		[ $i -lt 200 ] || fail "the client is stuck"
		sleep 0.05
	done
	rm "$dir/marked"
	# the next one begins when all memory is in its place
	i=0
	while on $to pgrep stasis-pager >/dev/null; do
		i=$((i + 1))
		[ $i -lt 600 ] || fail "the pager does not end"
		sleep 0.05
	done
	on $from pgrep redis-server >/dev/null && fail "it still runs at the source"
	on $from pgrep stasis >/dev/null && fail "something stays at the source"
	# packets may still be on the way to the source: in the world outside this waits
	on $from "$stasis" netlock release --all >/dev/null 2>&1
	h=$from from=$to to=$h
done
kill $benchmark
touch "$dir/stop"
wait $work || fail "the client"
python3 "$tests/keys.py" check 10.77.0.1 6379 "$dir" "$size" || fail check
cat "$dir/work.out"
echo "met $met of $rounds"
