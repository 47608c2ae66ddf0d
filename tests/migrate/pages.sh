#!/bin/sh
# A dump whose pages go to a page server, in fresh pid, mount and network namespaces:
#   pages.sh SERVER DUMP RESTORE GUEST FOLDER [OPTIONS OF SERVER AND DUMP]
# SERVER, DUMP and RESTORE are binaries named criu, of ours or CRIU's own. The guest, dumped and restored, finds itself unharmed.
set -u
server=$1 dump=$2 restore=$3 guest=$4 dir=$5
shift 5
mkdir -p "$dir/pages"
. "$(dirname "$0")/begin.sh"
# a byte on the status descriptor: it listens
"$server" page-server -D "$dir/pages" --address 127.0.0.1 --port 7911 -v4 -o server.log --status-fd 7 "$@" 7>"$dir/status" \
	>"$dir/server.out" 2>&1 &
serving=$!
wait_for [ -s "$dir/status" ]
"$dump" dump -t $root -D "$dir/img" -v4 -o dump.log --page-server --address 127.0.0.1 --port 7911 "$@" >"$dir/dump.out" 2>&1 ||
	fail dump
wait $serving || fail "the server says $?"
cp "$dir"/pages/pagemap-* "$dir"/pages/pages-* "$dir/img/" || fail "no pages at the server"
"$restore" restore -d -D "$dir/img" -v4 -o restore.log >"$dir/restore.out" 2>&1 || fail restore
kill -TERM $root
wait_for [ -s "$dir/work/result" ]
grep -q '^PASS' "$dir/work/result" || fail "the guest is harmed"
cat "$dir/pages/server.log"
echo "over: PASS"
