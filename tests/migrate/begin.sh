# What scripts with a guest and two engines begin with, once server, dump, restore, guest and dir are set: a guest that is ready, as
# $root. Sourced.
mkdir -p "$dir/work" "$dir/img"
chmod 777 "$dir/work"
fail() {
	echo "FAIL $*"
	for f in "$dir"/*.out "$dir"/*/*.log; do [ -s "$f" ] && { echo "--- $f"; tail -n 15 "$f"; }; done
	cat "$dir/work/result" 2>/dev/null
	exit 1
}
wait_for() {
	i=0
	until "$@" 2>/dev/null; do
		i=$((i + 1))
		[ $i -lt 400 ] || fail "waited for: $*"
		sleep 0.05
	done
}
ip link set lo up
cd "$dir/work" || exit 1
echo 20000 >/proc/sys/kernel/ns_last_pid
setsid env -i PATH=/usr/bin:/bin GUEST=stasis "$guest" "$dir/work" - </dev/null >"$dir/guest.out" 2>&1 &
root=$!
wait_for [ -e "$dir/work/ready" ]
