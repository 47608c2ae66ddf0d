#!/bin/sh
# A migration of a guest that writes shared memory all the time, in fresh pid, mount and network namespaces:
#   shared.sh STASIS GUEST FOLDER
# It finds itself unharmed at the other host, a pid and an IPC namespace. Prints the result of the migration.
set -u
stasis=$1 guest=$2 dir=$3
. "$(dirname "$0")/begin.sh"
cat >"$dir/there.sh" <<END
"$stasis" receive --listen 127.0.0.1:7766 >"$dir/receive.out" 2>&1 || exit 4
kill -TERM $root
i=0
until [ -s "$dir/work/result" ]; do i=\$((i + 1)); [ \$i -lt 400 ] || exit 5; sleep 0.05; done
END
unshare -p -m -i --fork --mount-proc --kill-child sh "$dir/there.sh" &
there=$!
# it listens
wait_for grep -q ':1E56 .* 0A ' /proc/net/tcp
"$stasis" migrate $root --to 127.0.0.1:7766 --max-downtime 60000 --json >"$dir/migrate.out" 2>&1 || fail migrate
wait $there || fail "code $?: 4 no restore, 5 it does not end"
grep -q '^PASS' "$dir/work/result" || fail "the guest is harmed"
cat "$dir/migrate.out"
echo "over: PASS"
