// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The way from processes of the node itself to tasks. A process that dials a frontend, by the loopback, an own address
 * of the node or a virtual address, is connected straight to a task: the address is changed in the system call, and no
 * packet is ever rewritten. What the process asks about its peer, and where its datagrams come from, it is told in the
 * words in which it dialled.
 *
 * A socket cannot be moved once it is connected. A connection that would need a second try is therefore the relay's
 * (no backend that answers for sure), and so are connected datagram sockets: when their backend goes, the relay sends
 * what they send to another one, at once. Datagrams that are sent to an address have their backend chosen here. */
#include "sockets.h"

#define MS 1000000ull
/* How many turns one socket takes. */
#define TRIES 8

#define LOOPBACK htonl(0x7f000000)
#define LOCALHOST htonl(0x7f000001)
#define LOOPBACK_MASK htonl(0xff000000)

/* Programs on sockets can be interrupted by those on packets, which write the same counters of a CPU. */
static __always_inline void tally(enum counter which)
{
	__u32 key = which;
	__u64 *counter = bpf_map_lookup_elem(&counters, &key);
	if (counter)
		__sync_fetch_and_add(counter, 1);
}

static __always_inline int is_host(struct bpf_sock_addr *ctx)
{
	__u32 key = 0;
	struct host *of = bpf_map_lookup_elem(&host, &key);
	return of && of->netns && of->netns == bpf_get_netns_cookie(ctx);
}

/* Whether the socket may be given another way than it would take by itself. */
static __always_inline int is_bound(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	return sk && (sk->bound_dev_if || sk->src_ip4);
}

static __always_inline int is_v4(const struct address *ip)
{
	return !(ip->word[0] | ip->word[1]) && ip->word[2] == MAPPED;
}

static __always_inline int is_loopback(const struct address *ip)
{
	if (is_v4(ip))
		return !ip->word[3] || (ip->word[3] & LOOPBACK_MASK) == LOOPBACK;
	return !(ip->word[0] | ip->word[1] | ip->word[2]) && ip->word[3] == htonl(1);
}

/* Whether an address and port are the node's to answer. */
static __always_inline int is_of_node(const struct address *ip, __be16 port)
{
	if (is_loopback(ip))
		return 1;
	__u32 *what = bpf_map_lookup_elem(&own, ip);
	/* At a gateway's address a network has its resolver. */
	return what && !(*what == OWN_GATEWAY && port == htons(53));
}

/* The frontend that a process dials. */
static __always_inline struct frontend *dialled_frontend(const struct dialled *dialled, __u8 proto)
{
	const struct address *ip = &dialled->ip;
	__be16 port = dialled->port;
	/* A virtual address takes every port. */
	struct frontend_key key = {.ip = *ip, .proto = proto};
	struct frontend *frontend = bpf_map_lookup_elem(&frontends, &key);
	if (frontend)
		return frontend;
	if (!port || !is_of_node(ip, port))
		return 0;
	key.port = port;
	frontend = bpf_map_lookup_elem(&frontends, &key);
	if (frontend)
		return frontend;
	key.ip = (struct address){};
	return bpf_map_lookup_elem(&frontends, &key);
}

/* Whether the frontend's new flows may be given to a socket. A list is the relay's to judge by, an idle connection the
 * relay's to end; and of what sockets carry, no one counts what is open, which other balancing needs. */
static __always_inline int is_plain(const struct frontend *frontend, __u8 proto)
{
	if (!(frontend->flags & ~FRONTEND_IPV6) && (proto == IPPROTO_UDP || !frontend->idle_ms))
		return 1;
	tally(SOCKET_TO_RELAY_POLICY);
	return 0;
}

/* Where a socket is sent to. */
struct target {
	__be32 ip;
	__be16 port;
	__u32 index, generation, network;
};

/* Takes the next turn of round robin, of the tickets that packets take too. A backend that lately did not answer gets
 * none. */
static __always_inline int take_turn(const struct frontend *frontend, __be16 port, struct target *to)
{
	__u32 id = frontend->id;
	__u32 *tickets_of = bpf_map_lookup_elem(&tickets, &id);
	__u32 slots_of = frontend->slots;
	if (!tickets_of || !slots_of)
		return 0;
	struct slot_key key = {frontend->id, frontend->generation, __sync_fetch_and_add(tickets_of, 1) % slots_of};
	__u32 *index = bpf_map_lookup_elem(&slots, &key);
	if (!index)
		return 0;
	to->index = *index;
	struct backend *backend = bpf_map_lookup_elem(&backends, &to->index);
	if (!backend || backend->passed_over > bpf_ktime_get_coarse_ns())
		return 0;
	to->ip = backend->ip.word[3];
	to->port = backend->port ? backend->port : port;
	to->generation = backend->generation;
	to->network = backend->network;
	return 1;
}

static __always_inline void book_flow(__u32 index)
{
	struct backend_counters *counters = bpf_map_lookup_elem(&backend_stats, &index);
	if (counters)
		__sync_fetch_and_add(&counters->flows, 1);
	tally(SOCKET_FLOW);
}

/* Gives a connection its backend. */
static __always_inline int connect(struct bpf_sock_addr *ctx, const struct frontend *frontend, struct dialled *dialled, struct target *to)
{
	for (int i = 0; i < TRIES; i++) {
		if (!take_turn(frontend, dialled->port, to))
			continue;
		struct socket_key key = {.cookie = bpf_get_socket_cookie(ctx), .ip = to->ip, .port = to->port};
		/* Without the entry the process sees the task as its peer, which is better than no connection. */
		bpf_map_update_elem(&tcp_dialled, &key, dialled, BPF_ANY);
		book_flow(to->index);
		return 1;
	}
	tally(SOCKET_TO_RELAY_NO_BACKEND);
	return 0;
}

/* One of the addresses from which the node connects to a task; 0 leaves it to the kernel. */
static __always_inline __be32 source_to(const struct target *to)
{
	__u32 network = to->network;
	struct sources *from = bpf_map_lookup_elem(&sources, &network);
	if (!from || !from->count)
		return 0;
	__u32 at = bpf_get_prandom_u32() % from->count;
	/* A comparison of 32 bits would not tell the verifier enough: clang 19 adds a register of 64. */
	return from->ip[at & (MAX_SOURCES - 1)];
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	if (ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP || !is_host(ctx))
		return ALLOW;
	/* No address is the loopback, to the kernel as well. */
	struct dialled dialled = {.ip = mapped(ctx->user_ip4 ? ctx->user_ip4 : LOCALHOST), .port = ctx->user_port};
	struct frontend *frontend = dialled_frontend(&dialled, IPPROTO_TCP);
	if (!frontend || !is_plain(frontend, IPPROTO_TCP))
		return ALLOW;
	if (is_bound(ctx)) {
		tally(SOCKET_TO_RELAY_BOUND);
		return ALLOW;
	}
	struct target to = {};
	if (connect(ctx, frontend, &dialled, &to)) {
		/* An address that is not there yet is passed over; the port is left to connect(2). */
		struct sockaddr_in from = {.family = AF_INET, .ip = source_to(&to)};
		if (from.ip)
			bpf_bind(ctx, &from, sizeof(from));
		ctx->user_ip4 = to.ip;
		ctx->user_port = to.port;
	}
	return ALLOW;
}

/* Whether a TCP socket of IPv6 takes no IPv4. */
static __always_inline int is_v6only(struct bpf_sock_addr *ctx)
{
	struct sock *sk = bpf_skc_to_tcp6_sock(ctx->sk);
	if (!sk)
		return 1;
	const unsigned char *byte = (const void *)sk + __builtin_preserve_field_info(sk->__sk_common.skc_ipv6only, FIELD_BYTE_OFFSET);
	__u64 bits = *byte;
	bits <<= __builtin_preserve_field_info(sk->__sk_common.skc_ipv6only, FIELD_LSHIFT_U64);
	return bits >> __builtin_preserve_field_info(sk->__sk_common.skc_ipv6only, FIELD_RSHIFT_U64);
}

/* To a task, which has IPv4, by an IPv6 socket: the kernel takes a mapped address for IPv4. */
SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	if (ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP || !is_host(ctx))
		return ALLOW;
	struct dialled dialled = {
		.ip = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}},
		.port = ctx->user_port,
	};
	if (is_none(&dialled.ip))
		dialled.ip.word[3] = htonl(1);
	struct frontend *frontend = dialled_frontend(&dialled, IPPROTO_TCP);
	if (!frontend || !is_plain(frontend, IPPROTO_TCP))
		return ALLOW;
	if (is_bound(ctx) || is_v6only(ctx)) {
		tally(SOCKET_TO_RELAY_BOUND);
		return ALLOW;
	}
	struct target to = {};
	if (connect(ctx, frontend, &dialled, &to)) {
		struct sockaddr_in6 from = {.family = AF_INET6, .ip = {0, 0, MAPPED, source_to(&to)}};
		if (from.ip[3])
			bpf_bind(ctx, &from, sizeof(from));
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = MAPPED;
		ctx->user_ip6[3] = to.ip;
		ctx->user_port = to.port;
	}
	return ALLOW;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	if (ctx->type != SOCK_STREAM || !is_host(ctx))
		return ALLOW;
	struct socket_key key = {.cookie = bpf_get_socket_cookie(ctx), .ip = ctx->user_ip4, .port = ctx->user_port};
	struct dialled *dialled = bpf_map_lookup_elem(&tcp_dialled, &key);
	if (dialled) {
		ctx->user_ip4 = dialled->ip.word[3];
		ctx->user_port = dialled->port;
	}
	return ALLOW;
}

/* What an IPv6 socket dialled, in place of the mapped address of a backend. */
static __always_inline int restore6(struct bpf_sock_addr *ctx, void *map)
{
	if (ctx->user_ip6[2] != MAPPED || !is_host(ctx))
		return ALLOW;
	struct socket_key key = {.cookie = bpf_get_socket_cookie(ctx), .ip = ctx->user_ip6[3], .port = ctx->user_port};
	struct dialled *dialled = bpf_map_lookup_elem(map, &key);
	if (dialled) {
		ctx->user_ip6[0] = dialled->ip.word[0];
		ctx->user_ip6[1] = dialled->ip.word[1];
		ctx->user_ip6[2] = dialled->ip.word[2];
		ctx->user_ip6[3] = dialled->ip.word[3];
		ctx->user_port = dialled->port;
	}
	return ALLOW;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return ctx->type == SOCK_STREAM ? restore6(ctx, &tcp_dialled) : ALLOW;
}

/* The backend of an earlier datagram to the same address, as long as it takes flows. */
static __always_inline int same_as_before(const struct frontend *frontend, struct chosen *chosen, __u64 now, __be16 port, struct target *to)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &chosen->backend);
	if (!backend || backend->generation != chosen->generation || backend->draining)
		return 0;
	if (frontend->idle_ms && now - chosen->seen > frontend->idle_ms * MS)
		return 0;
	to->ip = backend->ip.word[3];
	to->port = backend->port ? backend->port : port;
	chosen->seen = now;
	return 1;
}

/* Keeps what a socket dialled to reach a backend, unless it reaches it by another address already: then no one could
 * tell to which of the two a reply belongs. */
static __always_inline int remember(const struct socket_key *to_backend, const struct dialled *dialled)
{
	if (!bpf_map_update_elem(&udp_dialled, to_backend, dialled, BPF_NOEXIST))
		return 1;
	struct dialled *old = bpf_map_lookup_elem(&udp_dialled, to_backend);
	if (old && old->ip.word[3] == dialled->ip.word[3] && old->port == dialled->port)
		return 1;
	if (old) {
		struct socket_key by = {.cookie = to_backend->cookie, .ip = old->ip.word[3], .port = old->port};
		struct chosen *chosen = bpf_map_lookup_elem(&udp_chosen, &by);
		struct backend *backend = chosen ? bpf_map_lookup_elem(&backends, &chosen->backend) : 0;
		if (backend && backend->generation == chosen->generation && backend->ip.word[3] == to_backend->ip &&
		    (backend->port ? backend->port : old->port) == to_backend->port)
			return 0;
	}
	return !bpf_map_update_elem(&udp_dialled, to_backend, dialled, BPF_ANY);
}

/* An IPv6 socket that sends to a mapped address comes by here, too. To any other address it has the relay: the kernel
 * refuses to have that mapped. */
SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	if (ctx->type != SOCK_DGRAM || ctx->protocol != IPPROTO_UDP || !is_host(ctx))
		return ALLOW;
	struct dialled dialled = {.ip = mapped(ctx->user_ip4 ? ctx->user_ip4 : LOCALHOST), .port = ctx->user_port};
	struct frontend *frontend = dialled_frontend(&dialled, IPPROTO_UDP);
	if (!frontend || !is_plain(frontend, IPPROTO_UDP))
		return ALLOW;
	/* The source may be of the socket or of this one datagram. */
	if (is_bound(ctx) || ctx->msg_src_ip4) {
		tally(SOCKET_TO_RELAY_BOUND);
		return ALLOW;
	}
	__u64 now = bpf_ktime_get_coarse_ns();
	struct target to = {};
	struct socket_key by = {.cookie = bpf_get_socket_cookie(ctx), .ip = dialled.ip.word[3], .port = dialled.port};
	struct socket_key at = {.cookie = by.cookie};
	struct chosen *chosen = bpf_map_lookup_elem(&udp_chosen, &by);
	if (chosen && same_as_before(frontend, chosen, now, dialled.port, &to)) {
		at.ip = to.ip;
		at.port = to.port;
		/* Again, as the kernel may have forgotten it, and so that it forgets others first. */
		if (remember(&at, &dialled)) {
			ctx->user_ip4 = to.ip;
			ctx->user_port = to.port;
			return ALLOW;
		}
	}
	for (int i = 0; i < TRIES; i++) {
		if (!take_turn(frontend, dialled.port, &to))
			continue;
		at.ip = to.ip;
		at.port = to.port;
		if (!remember(&at, &dialled))
			continue;
		struct chosen now_chosen = {.seen = now, .backend = to.index, .generation = to.generation};
		if (bpf_map_update_elem(&udp_chosen, &by, &now_chosen, BPF_ANY))
			break;
		book_flow(to.index);
		ctx->user_ip4 = to.ip;
		ctx->user_port = to.port;
		return ALLOW;
	}
	tally(SOCKET_TO_RELAY_NO_BACKEND);
	return ALLOW;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	if (!is_host(ctx))
		return ALLOW;
	struct socket_key key = {.cookie = bpf_get_socket_cookie(ctx), .ip = ctx->user_ip4, .port = ctx->user_port};
	struct dialled *dialled = bpf_map_lookup_elem(&udp_dialled, &key);
	if (dialled) {
		ctx->user_ip4 = dialled->ip.word[3];
		ctx->user_port = dialled->port;
	}
	return ALLOW;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return restore6(ctx, &udp_dialled);
}

char licence[] SEC("license") = "Dual BSD/GPL";
