// SPDX-License-Identifier: Apache-2.0 OR MIT
// The lock's programs: one on each side of every device (tcx). A packet is held (dropped) while the lock is armed, unless it
// belongs to a socket with the lock's mark. What is dropped is sent again by whoever sent it.
// Nothing here needs a helper that is for GPL programs only.
#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define ALWAYS static inline __attribute__((always_inline))

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

// asm/byteorder would bring more headers than it is worth: images of stasis are little endian, too
#define BE16(x) ((u16)__builtin_bswap16((u16)(x)))

#define NEXT (-1) // TCX_NEXT: the next program decides
#define DROP 2    // TCX_DROP

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define TCP 6
#define UDP 17
#define DCCP 33
#define SCTP 132
#define UDPLITE 136

// Scopes.
#define WHOLE 0
#define CONNECTIONS 1

// The one word that locks, and whose it is. 64 bytes, the same in state.rs.
struct state {
	u32 armed;
	u32 scope;
	u32 mark;
	// 1: the lock outlives its owner, until a restore releases it
	u32 kept;
	u64 id;
	u64 owner_start;
	u32 owner_pid;
	u32 pad;
	u64 netns_dev;
	u64 netns_ino;
	u64 owner_pid_ns;
};

// A connection, seen from its end here. IPv4 addresses are mapped into IPv6; zero means any.
struct tuple {
	u8 local[16];
	u8 remote[16];
	u16 local_port; // network order
	u16 remote_port;
	u8 protocol;
	u8 pad[3];
};

struct bpf_map_def {
	u32 type;
	u32 key_size;
	u32 value_size;
	u32 max_entries;
	u32 map_flags;
	u32 id;
	u32 pinning;
};

struct bpf_map_def SEC("maps") stasis_state = {
	.type = BPF_MAP_TYPE_ARRAY,
	.key_size = 4,
	.value_size = sizeof(struct state),
	.max_entries = 1,
};

struct bpf_map_def SEC("maps") stasis_tuples = {
	.type = BPF_MAP_TYPE_HASH,
	.key_size = sizeof(struct tuple),
	.value_size = 4,
	.max_entries = 65536,
	.map_flags = BPF_F_NO_PREALLOC,
};

// The dead man's switch: the kernel empties this map when the last process that holds it is gone (its user count, not that of the
// programs), and then nothing is held any more.
struct bpf_map_def SEC("maps") stasis_alive = {
	.type = BPF_MAP_TYPE_PROG_ARRAY,
	.key_size = 4,
	.value_size = 4,
	.max_entries = 2,
};

static void *(*lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*tail_call)(void *ctx, void *map, u32 index) = (void *)BPF_FUNC_tail_call;
static long (*load_relative)(const void *skb, u32 offset, void *to, u32 len, u32 start) = (void *)BPF_FUNC_skb_load_bytes_relative;
static struct bpf_sock *(*lookup_tcp)(void *ctx, struct bpf_sock_tuple *t, u32 size, u64 netns, u64 flags) = (void *)BPF_FUNC_sk_lookup_tcp;
static struct bpf_sock *(*lookup_udp)(void *ctx, struct bpf_sock_tuple *t, u32 size, u64 netns, u64 flags) = (void *)BPF_FUNC_sk_lookup_udp;
static long (*release)(struct bpf_sock *sk) = (void *)BPF_FUNC_sk_release;

// Where the transport header is, and of which protocol; 0: this is no packet of a connection.
struct place {
	u32 offset;
	u8 protocol;
	u8 fragment; // not the first: it has no ports
	u8 six;
};

ALWAYS int find(struct __sk_buff *skb, struct place *p, u8 *source, u8 *target)
{
	u8 h[40];

	if (skb->protocol == BE16(ETH_P_IP)) {
		if (load_relative(skb, 0, h, 20, BPF_HDR_START_NET))
			return 0;
		p->offset = (h[0] & 15) * 4;
		p->protocol = h[9];
		p->fragment = (h[6] & 0x1f) || h[7];
		p->six = 0;
		source[10] = source[11] = target[10] = target[11] = 0xff;
		__builtin_memcpy(source + 12, h + 12, 4);
		__builtin_memcpy(target + 12, h + 16, 4);
		return 1;
	}
	if (skb->protocol != BE16(ETH_P_IPV6) || load_relative(skb, 0, h, 40, BPF_HDR_START_NET))
		return 0;
	__builtin_memcpy(source, h + 8, 16);
	__builtin_memcpy(target, h + 24, 16);
	p->six = 1;
	p->fragment = 0;
	u8 next = h[6];
	u32 at = 40;
	// extension headers: hop by hop, routing, fragment, authentication, options; nobody sends more than a few
#pragma unroll
	for (int i = 0; i < 6; i++) {
		u8 e[4];
		if (next != 0 && next != 43 && next != 44 && next != 51 && next != 60)
			break;
		if (load_relative(skb, at, e, 4, BPF_HDR_START_NET))
			return 0;
		if (next == 44) {
			p->fragment = e[2] || (e[3] & 0xf8);
			at += 8;
		} else if (next == 51) {
			at += (e[1] + 2) * 4;
		} else {
			at += (e[1] + 1) * 8;
		}
		next = e[0];
		if (p->fragment)
			break;
	}
	p->offset = at;
	p->protocol = next;
	return 1;
}

ALWAYS int has_ports(u8 protocol)
{
	return protocol == TCP || protocol == UDP || protocol == UDPLITE || protocol == SCTP || protocol == DCCP;
}

ALWAYS int marked(struct __sk_buff *skb, struct place *p, u8 *source, u8 *target, u16 *ports, u32 mark)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	u32 size;

	if (p->six) {
		__builtin_memcpy(t.ipv6.saddr, source, 16);
		__builtin_memcpy(t.ipv6.daddr, target, 16);
		t.ipv6.sport = ports[0];
		t.ipv6.dport = ports[1];
		size = sizeof(t.ipv6);
	} else {
		__builtin_memcpy(&t.ipv4.saddr, source + 12, 4);
		__builtin_memcpy(&t.ipv4.daddr, target + 12, 4);
		t.ipv4.sport = ports[0];
		t.ipv4.dport = ports[1];
		size = sizeof(t.ipv4);
	}
	// an early socket of a handshake is told as its listener
	if (p->protocol == TCP)
		sk = lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	else if (p->protocol == UDP)
		sk = lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	else
		return 0;
	if (!sk)
		return 0;
	u32 found = sk->mark;
	release(sk);
	return found == mark;
}

ALWAYS int named(struct tuple *t)
{
	if (lookup(&stasis_tuples, t))
		return 1;
	__builtin_memset(t->remote, 0, 16);
	t->remote_port = 0;
	if (lookup(&stasis_tuples, t))
		return 1;
	__builtin_memset(t->local, 0, 16);
	return lookup(&stasis_tuples, t) != 0;
}

ALWAYS int hold(struct __sk_buff *skb, int in)
{
	u32 zero = 0;
	struct state *s = lookup(&stasis_state, &zero);
	struct place p = {};
	struct tuple t = {};
	u8 source[16] = {}, target[16] = {};
	u16 ports[2] = {};

	if (!s || !s->armed)
		return NEXT;
	if (!find(skb, &p, source, target) || !has_ports(p.protocol))
		return NEXT;
	if (p.fragment)
		return s->scope == WHOLE ? DROP : NEXT;
	// a packet that arrives has a mark only if it comes round the loopback device
	if (skb->mark == s->mark)
		return NEXT;
	if (load_relative(skb, p.offset, ports, 4, BPF_HDR_START_NET))
		return NEXT;
	if (s->scope == CONNECTIONS) {
		__builtin_memcpy(t.local, in ? target : source, 16);
		__builtin_memcpy(t.remote, in ? source : target, 16);
		t.local_port = in ? ports[1] : ports[0];
		t.remote_port = in ? ports[0] : ports[1];
		t.protocol = p.protocol;
		if (!named(&t))
			return NEXT;
	}
	if (in && marked(skb, &p, source, target, ports, s->mark))
		return NEXT;
	return DROP;
}

SEC("classifier/hold_in") int stasis_hold_in(struct __sk_buff *skb)
{
	return hold(skb, 1);
}

SEC("classifier/hold_out") int stasis_hold_out(struct __sk_buff *skb)
{
	return hold(skb, 0);
}

ALWAYS int enter(struct __sk_buff *skb, int in)
{
	u32 zero = 0;
	struct state *s = lookup(&stasis_state, &zero);

	if (!s || !s->armed)
		return NEXT;
	if (s->kept)
		return hold(skb, in);
	tail_call(skb, &stasis_alive, in ? 0 : 1);
	return NEXT;
}

SEC("classifier/lock_in") int stasis_lock_in(struct __sk_buff *skb)
{
	return enter(skb, 1);
}

SEC("classifier/lock_out") int stasis_lock_out(struct __sk_buff *skb)
{
	return enter(skb, 0);
}

char terms[] SEC("license") = "MIT";
