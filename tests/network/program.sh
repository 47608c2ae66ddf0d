#!/bin/sh
# The proof with real programs, run in fresh pid, mount and network namespaces:
#   program.sh STASIS STREAM FOLDER ROUNDS SECONDS PROGRAM
# PROGRAM serves here; a client in a second network namespace, joined by a veth pair, works with it all the time. The server is
# dumped, killed and restored ROUNDS times, SECONDS after its death. The client must see no error, and no packet on the wire may be a reset.
# PROGRAM: tls, redis, postgres, nginx;
# queue: nginx that accepts nobody, so that all its connections wait while it is away.
set -eu
stasis=$1 stream=$2 dir=$3 rounds=$4 pause=$5 program=$6
own=10.9.0.1 peer=10.9.0.2
mkdir -p "$dir"
chmod 755 "$dir"
cd "$dir"
fail() {
	echo "FAIL $*"
	exit 1
}
until_says() {
	i=0
	until eval "$1" >/dev/null 2>&1; do
		i=$((i + 1))
		[ $i -lt 300 ] || fail "never: $1"
		sleep 0.1
	done
}
unshare -n sleep 1000 &
far=$!
sleep 0.2
there() {
	nsenter -t $far -n "$@"
}
ip link set lo up
ip link add v0 type veth peer name v1 netns $far
ip addr add $own/24 dev v0
ip link set v0 up
there ip link set lo up
there ip addr add $peer/24 dev v1
there ip link set v1 up
case $program in
tls)
	openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN=proof 2>/dev/null
	# what comes from standard input goes to whoever is connected
	mkfifo in
	setsid sh -c 'exec openssl s_server -accept 7000 -key key -cert cert -rev <in' >serve.out 2>&1 &
	exec 8>in
	server=$!
	until_says "there openssl s_client -connect $own:7000 </dev/null"
	# numbers there, turned round by the server and back
	cat >client.sh <<-'EOF'
		i=100000
		(while [ ! -e stop ]; do i=$((i + 1)); echo $i; sleep 0.002; done; sleep 3) |
			openssl s_client -quiet -no_ign_eof -connect 10.9.0.1:7000 2>client.err | rev |
			(want=100001; while read -r line; do
				[ "$line" = $want ] || { echo "got $line, not $want"; exit 1; }
				want=$((want + 1))
			done; echo "OK $((want - 100001)) lines")
	EOF
	client="sh client.sh"
	good="grep -q '^OK [1-9]' client.out"
	;;
redis)
	setsid redis-server --port 7000 --bind $own --protected-mode no --save "" --dir "$dir" </dev/null >serve.out 2>&1 &
	server=$!
	until_says "redis-cli -h $own -p 7000 ping"
	client="redis-benchmark -h $own -p 7000 -c 20 -n 1000000000 -t set -r 100000"
	good="redis-cli -h $own -p 7000 ping && ! grep -qi error client.out"
	;;
postgres)
	bin=$(dirname "$(readlink -f "$(command -v postgres)")")
	user=$(id -un nobody)
	mkdir -p data run
	chown "$user" data run
	setpriv --reuid "$user" --clear-groups "$bin/initdb" -D data -U p -A trust >init.out 2>&1
	echo "host all all 10.9.0.0/24 trust" >>data/pg_hba.conf
	setsid setpriv --reuid "$user" --clear-groups "$bin/postgres" -D data -p 7000 -h $own -k "$dir/run" </dev/null >serve.out 2>&1 &
	server=$!
	until_says "psql -h $own -p 7000 -U p postgres -c 'select 1'"
	pgbench -i -q -h $own -p 7000 -U p postgres >bench.out 2>&1
	client="pgbench -c 4 -T ${SECONDS_ALL:-20} -h $own -p 7000 -U p postgres"
	good="grep -q 'number of failed transactions: 0' client.out && ! grep -qi 'abort' client.out"
	;;
nginx)
	mkdir -p logs html
	head -c 20000 /dev/zero >html/index.html
	cat >nginx.conf <<-EOF
		daemon off; worker_processes 2; error_log $dir/logs/error.log; pid $dir/nginx.pid; user root;
		events { worker_connections 1024; }
		http { access_log off; client_body_temp_path $dir/t1; proxy_temp_path $dir/t2; fastcgi_temp_path $dir/t3;
			uwsgi_temp_path $dir/t4; scgi_temp_path $dir/t5;
			server { listen $own:7000; root $dir/html; keepalive_requests 1000000; } }
	EOF
	setsid nginx -p "$dir" -c "$dir/nginx.conf" </dev/null >serve.out 2>&1 &
	server=$!
	until_says "wget -q -O /dev/null http://$own:7000/ || curl -s -f http://$own:7000/"
	client="wrk -t 2 -c 30 -d ${SECONDS_ALL:-20} --timeout 60 http://$own:7000/"
	good="grep -q 'requests in' client.out && ! grep -qE 'Socket errors|Non-2xx' client.out"
	;;
queue)
	mkdir -p logs html
	head -c 20000 /dev/zero >html/index.html
	cat >nginx.conf <<-EOF
		daemon off; master_process off; error_log $dir/logs/error.log; pid $dir/nginx.pid; user root;
		events { worker_connections 1024; }
		http { access_log off; client_body_temp_path $dir/t1; proxy_temp_path $dir/t2; fastcgi_temp_path $dir/t3;
			uwsgi_temp_path $dir/t4; scgi_temp_path $dir/t5; server { listen $own:7000; root $dir/html; } }
	EOF
	setsid nginx -p "$dir" -c "$dir/nginx.conf" </dev/null >serve.out 2>&1 &
	server=$!
	until_says "wget -q -O /dev/null http://$own:7000/"
	kill -STOP $server
	cat >client.sh <<-EOF
		for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
			wget -q -t 1 -T 60 -O got.\$i http://$own:7000/ && cmp got.\$i html/index.html && echo OK &
		done
		wait
	EOF
	client="sh client.sh"
	good='[ "$(grep -c OK client.out)" = 20 ]'
	;;
*) fail "no program $program" ;;
esac
there "$stream" watch v1 "$dir" >watch.out 2>&1 &
watcher=$!
until_says "[ -e watching ]"
there sh -c "exec $client" >client.out 2>&1 &
clientpid=$!
# connected (port 7000, state 1), and at work
until_says "grep -q ':1B58 [0-9A-F]*:[0-9A-F]* 01' /proc/net/tcp /proc/net/tcp6"
sleep 0.5
round=0
while [ $round -lt "$rounds" ]; do
	round=$((round + 1))
	mkdir -p "img-$round"
	"$stasis" dump -t $server -D "img-$round" -v4 -o dump.log --tcp-established --shell-job --file-locks --ext-unix-sk || {
		tail -5 "img-$round/dump.log"
		fail "dump $round"
	}
	sleep "$pause"
	"$stasis" restore -d -D "img-$round" -v4 -o restore.log --tcp-established --shell-job --file-locks --ext-unix-sk || {
		tail -5 "img-$round/restore.log"
		fail "restore $round"
	}
	rm -rf "img-$round"/pages-*.img
	sleep 1
done
[ $program != queue ] || kill -CONT $server
[ $program != queue ] || sleep 1
touch watched stop
wait $watcher || fail "$(tail -1 watch.out)"
case $program in
redis) kill $clientpid ;;
esac
wait $clientpid || true
eval "$good" || {
	tail -5 client.out
	[ ! -e client.err ] || tail -3 client.err
	fail "the client of $program"
}
echo "OK $program: $rounds rounds; $(tail -c 300 client.out | tr '\r' '\n' | tail -1); $(tail -1 watch.out)"
