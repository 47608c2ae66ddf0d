#!/bin/sh
# What a network namespace holds, before a dump and after a restore, in fresh pid and mount namespaces:
#   contents.sh STASIS FOLDER [RESTORER] [plain]
# With "plain" there is only what CRIU can make again, too: no macvlan, no rules of nftables.
set -eu
stasis=$1 dir=$2 restorer=${3:-$1} plain=${4:-}
mkdir -p "$dir/img"
cat >"$dir/show.sh" <<'EOF'
# without what goes on by itself: lifetimes, counters, states of ports, and numbers given to namespaces
ip -o addr | sed 's/ *valid_lft.*//'
ip -d -o link | sed 's/ link-netnsid [0-9]*//; s/ state [A-Z]*//; s/[a-z_]*timer *[0-9.]*//g; s/promiscuity.*minmtu/minmtu/'
ip rule
ip -6 rule
ip -o route show table all | sort
ip -o -6 route show table all | grep -v '^multicast' | sort
ip neigh show nud permanent
for f in ipv4/conf/va/rp_filter ipv6/conf/va/forwarding ipv4/tcp_retries2 ipv4/ping_group_range ipv4/ip_local_port_range; do
	echo "$f $(cat /proc/sys/net/$f)"
done
if [ -z "$1" ]; then
	sed 's/^\(ipv4 *2 udp *17\) [0-9]*/\1/' /proc/net/nf_conntrack | sed 's/ use=.*//' | grep 'dport=99 '
	iptables-nft-save | grep -v '^[#:]'
	ip6tables-nft-save | grep -v '^[#:]'
fi
EOF
cat >"$dir/build.sh" <<'EOF'
set -e
ip link set lo up
ip link add va type veth peer name vb
ip link add br0 type bridge ageing_time 12345
ip link set vb master br0
ip addr add 10.1.0.1/24 dev va
ip addr add fd00:1::1/64 dev va nodad
for d in va vb br0; do ip link set $d up; done
# made by open files, and stays without them
ip tuntap add dev tap9 mode tap user 4711 multi_queue
ip link set tap9 mtu 1300
ip rule add from 10.2.0.0/16 lookup 77 pref 100
ip rule add fwmark 0x5 lookup 78 pref 101
ip -6 rule add from fd00:1::/64 lookup 79 pref 102
ip route add default via 10.1.0.254 table 77
ip route add 10.50.0.0/16 nexthop via 10.1.0.7 weight 3 nexthop via 10.1.0.8 weight 1
ip route add blackhole 10.66.0.0/16
ip -6 route add fd00:50::/64 nexthop via fd00:1::7 dev va nexthop via fd00:1::8 dev va
ip neigh add 10.1.0.77 lladdr 02:00:00:00:00:77 dev va nud permanent
echo 2 >/proc/sys/net/ipv4/conf/va/rp_filter
echo 1 >/proc/sys/net/ipv6/conf/va/forwarding
echo 7 >/proc/sys/net/ipv4/tcp_retries2
echo "1000 2000" >/proc/sys/net/ipv4/ping_group_range
echo "20000 30000" >/proc/sys/net/ipv4/ip_local_port_range
if [ -z "$1" ]; then
	ip link add mv0 link va type macvlan mode bridge
	ip addr add 10.2.0.1/24 dev mv0
	ip link set mv0 up
	iptables-nft -A INPUT -p tcp --dport 99 -j DROP
	iptables-nft -t nat -A POSTROUTING -s 10.2.0.0/24 -j MASQUERADE
	iptables-nft -A INPUT -m state --state ESTABLISHED -j ACCEPT
	ip6tables-nft -A OUTPUT -m state --state INVALID -j REJECT
	# a connection that is translated
	iptables-nft -t nat -A OUTPUT -p udp --dport 99 -j REDIRECT --to-ports 100
	echo 600 >/proc/sys/net/netfilter/nf_conntrack_udp_timeout
	python3 "$(dirname "$0")/udp.py"
fi
EOF
# from port 4000 to port 99; with "hear" it must arrive at port 100
cat >"$dir/udp.py" <<'EOF'
import socket, sys
s, t = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in "st")
s.bind(("127.0.0.1", 4000))
if sys.argv[1:]:
    t.bind(("127.0.0.1", 100))
    t.settimeout(10)
s.sendto(b"x", ("127.0.0.1", 99))
if sys.argv[1:]:
    t.recv(1)
EOF
setsid unshare -n sleep 1000 </dev/null >/dev/null 2>&1 &
pid=$!
sleep 0.3
there() {
	nsenter -t $pid -n sh "$dir/$1.sh" "$plain"
}
there build || { echo "FAIL cannot build"; exit 1; }
# addresses of links are being tried, ports of bridges learn
sleep 3
there show >"$dir/before"
"$stasis" dump -t $pid -D "$dir/img" -v4 -o dump.log || { grep -i error "$dir/img/dump.log"; echo "FAIL dump"; exit 1; }
"$restorer" restore -d -D "$dir/img" -v4 -o restore.log || { grep -i error "$dir/img/restore.log"; echo "FAIL restore"; exit 1; }
sleep 3
there show >"$dir/after"
wc -l <"$dir/before"
diff "$dir/before" "$dir/after" || { echo "FAIL it differs"; exit 1; }
[ -n "$plain" ] || nsenter -t $pid -n python3 "$dir/udp.py" hear || { echo "FAIL a translated connection is not translated any more"; exit 1; }
grep -q 'weight 3' "$dir/after" && grep -q 'lookup 78' "$dir/after" && echo "OK the same"
kill -9 $pid
