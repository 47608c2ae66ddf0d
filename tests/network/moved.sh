#!/bin/sh
# Both ends of connections in one tree, restored under another local address; in fresh pid, mount and network namespaces:
#   moved.sh STASIS GUEST FOLDER OLD NEW
set -eu
stasis=$1 guest=$2 dir=$3 old=$4 new=$5
mkdir -p "$dir/guest"
ip link set lo up
setsid "$guest" "$dir/guest" - </dev/null >"$dir/guest.out" 2>&1 &
pid=$!
i=0
until [ -e "$dir/guest/ready" ]; do
	i=$((i + 1))
	[ $i -lt 300 ] || { echo "FAIL the guest is not ready"; exit 1; }
	sleep 0.1
done
"$stasis" dump $pid -D "$dir/img" --tcp-established || { echo "FAIL dump"; exit 1; }
"$stasis" restore -D "$dir/img" --detach --tcp-established --tcp-remap "$old=$new" || { echo "FAIL restore"; exit 1; }
# addresses as words of /proc/net/tcp
word() {
	echo "$1" | awk -F. '{ printf "%02X%02X%02X%02X", $4, $3, $2, $1 }'
}
awk '$4 == "01" { print $2, $3 }' /proc/net/tcp >"$dir/connections"
cat "$dir/connections"
grep -q "^$(word "$new"):.* $(word "$new"):" "$dir/connections" || { echo "FAIL no connection has moved"; exit 1; }
! grep -q "$(word "$old"):" "$dir/connections" || { echo "FAIL a connection has not moved"; exit 1; }
kill -TERM $pid
i=0
until [ -e "$dir/guest/result" ]; do
	i=$((i + 1))
	[ $i -lt 300 ] || { echo "FAIL no result"; exit 1; }
	sleep 0.1
done
cat "$dir/guest/result"
