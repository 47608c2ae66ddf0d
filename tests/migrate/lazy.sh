#!/bin/sh
# Post-copy with the command line of criu, in fresh pid, mount and network namespaces:
#   lazy.sh DUMP DAEMON RESTORE GUEST FOLDER WAY
# DUMP, DAEMON and RESTORE are binaries named criu, of ours or CRIU's own. TLS in the environment: options that secure the
# connection. WAY:
#   local   a whole dump; the daemon brings memory from the images
#   remote  the dump keeps memory with the frozen tree; the daemon asks it over a connection
#   lost    as remote, but the dump answers nothing and is then killed: the copy fails at once, the tree here runs on
set -u
dump=$1 daemon=$2 restore=$3 guest=$4 dir=$5 way=$6
mkdir -p "$dir/w"
. "$(dirname "$0")/begin.sh"
keep=
[ "$way" = local ] || keep="--lazy-pages --address 127.0.0.1 --port 7911 --status-fd 7 ${TLS:-}"
"$dump" dump -t $root -D "$dir/img" -v4 -o dump.log $keep 7>"$dir/status" >"$dir/dump.out" 2>&1 &
dumping=$!
if [ "$way" = local ]; then
	wait $dumping || fail dump
else
	# a byte on the status descriptor: memory may be asked for
	wait_for [ -s "$dir/status" ]
fi
from=
[ "$way" = local ] || from="--page-server --address 127.0.0.1 --port 7911 ${TLS:-}"
# on one machine the frozen tree has the numbers: the tree comes back in a pid namespace of its own
in=
[ "$way" = local ] || in="unshare -p -m --fork --mount-proc --kill-child"
# numbers that are free in either place
echo 1000 >/proc/sys/kernel/ns_last_pid
cat >"$dir/second.sh" <<END
"$daemon" lazy-pages -D "$dir/img" -W "$dir/w" -v4 -o lazy.log $from &
daemon=\$!
i=0
until [ -S "$dir/w/lazy-pages.socket" ]; do i=\$((i + 1)); [ \$i -lt 200 ] || exit 3; sleep 0.05; done
"$restore" restore -d -D "$dir/img" -W "$dir/w" -v4 -o restore.log --lazy-pages || exit 4
kill -TERM $root
wait \$daemon
echo "daemon \$?" >"$dir/daemon.code"
i=0
while kill -0 $root 2>/dev/null && ! grep -q '^State:.[ZX]' /proc/$root/status; do
	i=\$((i + 1))
	[ \$i -lt 300 ] || exit 5
	sleep 0.05
done
END
if [ "$way" = lost ]; then
	kill -STOP $dumping
	(sleep 2; kill -KILL $dumping) &
fi
$in sh "$dir/second.sh" >"$dir/second.out" 2>&1
code=$?
if [ "$way" = lost ]; then
	[ $code = 5 ] && fail "the copy hangs"
	grep -q 'daemon 0' "$dir/daemon.code" 2>/dev/null && fail "the daemon did not notice"
	grep -q '^PASS' "$dir/work/result" 2>/dev/null && fail "the copy says it is whole"
	kill -TERM $root
	wait_for grep -q '^PASS' "$dir/work/result"
	echo "the source lives: PASS"
	exit 0
fi
[ $code = 0 ] || fail "code $code: 3 no daemon, 4 no restore, 5 it does not end"
[ "$way" = local ] || wait $dumping || fail "the dump says $?"
grep -q '^PASS' "$dir/work/result" || fail "the guest is harmed"
grep -q 'daemon 0' "$dir/daemon.code" || fail "the daemon failed"
echo "PASS"
