#!/bin/sh
# Migrations that are broken off, in fresh pid and mount namespaces:
#   abort.sh STASIS GUEST FOLDER SIDE FIRST STEP MOST [EXTRA OPTIONS OF THE SOURCE]
# Two hosts are pid namespaces of their own. The guest on the first is to move to the second; SIDE says what breaks it:
#   source  the source's engine is killed at kill points FIRST, FIRST+STEP, ... until one lets it through, at most MOST times
#   target  the same with the destination's engine
#   both    both at once
#   int     the source's engine gets SIGINT after FIRST, FIRST+STEP, ... milliseconds
#   cut     the destination's engine is stopped by SIGKILL after so many milliseconds
# After each the guest runs on exactly one host, and at the end it finds itself unharmed.
set -u
stasis=$1 guest=$2 dir=$3 side=$4 at=$5 step=$6 most=$7
shift 7
mkdir -p "$dir/work" "$dir/none"
chmod 777 "$dir/work"
fail() {
	echo "FAIL $side $at: $*"
	for f in "$dir"/*.out; do echo "--- $f"; tail -n 8 "$f"; done
	cat "$dir/work/result" 2>/dev/null
	exit 1
}
ip link set lo up
for h in a b; do
	unshare -m -p --fork --mount-proc --kill-child sh -c 'while :; do sleep 0.2; done' &
	up=$!
	sleep 0.3
	eval "$h=$(cat /proc/$up/task/$up/children | tr -d ' ')"
done
on() {
	eval "host=\$$1"
	shift
	nsenter -t "$host" -m -p "$@"
}
name=$(basename "$guest" | cut -c1-15)
cd "$dir/work" || exit 1
on a sh -c "echo 20000 >/proc/sys/kernel/ns_last_pid; exec setsid --fork env -i PATH=/usr/bin:/bin GUEST=stasis $guest $dir/work -" \
	</dev/null >"$dir/guest.out" 2>&1 &
i=0
until [ -e "$dir/work/ready" ]; do
	i=$((i + 1))
	[ $i -lt 200 ] || fail "the guest is not ready"
	sleep 0.05
done
root=$(on a pgrep -o "$name")
alive() { on "$1" sh -c "kill -0 $root 2>/dev/null && ! grep -q '^State:.[ZX]' /proc/$root/status"; }
# a tree that is being let go, or dies with its engine, needs a moment
one_of_them() {
	i=0
	while [ $i -lt 60 ]; do
		i=$((i + 1))
		here=0 there=0
		alive a && here=1
		alive b && there=1
		[ $((here + there)) = 1 ] && [ $i -gt 2 ] && return 0
		sleep 0.05
	done
	fail "runs here: $here, there: $there"
}
port=7800 tries=0 moved=0
while [ $tries -lt "$most" ]; do
	tries=$((tries + 1)) port=$((port + 1))
	source= target=
	case $side in
	source) source="STASIS_KILL_AT=$at" ;;
	target) target="STASIS_KILL_AT=$at" ;;
	both) source="STASIS_KILL_AT=$at" target="STASIS_KILL_AT=$at" ;;
	esac
	: >"$dir/receive.out"
	on b env $target "$stasis" receive --listen 127.0.0.1:$port --hooks-dir "$dir/none" >"$dir/receive.out" 2>&1 &
	receive=$!
	i=0
	until grep -q listening "$dir/receive.out"; do
		i=$((i + 1))
		[ $i -lt 200 ] || fail "nobody listens"
		sleep 0.02
	done
	on a env $source "$stasis" migrate "$root" --to 127.0.0.1:$port --max-downtime 5000 --hooks-dir "$dir/none" "$@" \
		>"$dir/migrate.out" 2>&1 &
	migrate=$!
	case $side in
	int | cut)
		sleep "$(printf '%d.%03d' $((at / 1000)) $((at % 1000)))"
		[ $side = int ] && on a pkill -INT -x stasis
		[ $side = cut ] && on b pkill -KILL -x stasis
		;;
	esac
	wait $migrate
	code=$?
	wait $receive
	one_of_them
	if [ $there = 1 ]; then
		moved=1
		# one that says so, or could not say it any more
		[ $code = 0 ] || [ $side = source ] || [ $side = both ] || fail "it moved, but the source says $code"
		break
	fi
	[ $code != 0 ] || fail "it did not move, but the source says 0"
	at=$((at + step))
done
h=a
[ $moved = 1 ] && h=b
on $h kill -TERM "$root"
i=0
until [ -s "$dir/work/result" ]; do
	i=$((i + 1))
	[ $i -lt 200 ] || fail "no verdict"
	sleep 0.05
done
grep -q '^PASS' "$dir/work/result" || fail "the guest is harmed"
echo "broken off $((tries - moved)) times, moved $moved: PASS"
