/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who a packet is addressed to, and which backend a flow has: chosen for a new one, found again for one whose entries
 * were forgotten in part. */
#pragma once
#include "flow.h"

/* How many backends are tried for one packet, and from which try on those passed over count again. */
#define TRIES 8
#define LAST_TRIES 6
/* How many backends are compared for the one with the fewest flows. */
#define COMPARED 64
/* Among how many backends that of a client's first datagram is looked for, in case it is not its first. */
#define SEARCHED 16

/* A packet that is to begin a flow, and who sent it. */
struct call {
	const struct packet *packet;
	const struct frontend *frontend;
	const struct task *client; /* if it is a task of this node */
	__u32 ifindex;		   /* the link by which its sender is answered; a task's own */
	__u32 sent_back;	   /* how many backends could not take it */
	__u32 avoided;		   /* the node of a backend that did not answer it; 0 is none */
	__u8 again;		   /* as of a flow */
};

/* A backend's address for a call; none if it has none of the client's family. */
static __always_inline const struct address *place_of(const struct call *call, const struct backend *backend)
{
	return call->packet->v6 ? &backend->ip6 : &backend->ip;
}

/* The way back of a flow from a call to a backend, written to `to`. */
static __always_inline void way_back_from(struct tuple *to, const struct call *call, const struct backend *backend)
{
	const struct tuple *t = &call->packet->tuple;
	__builtin_memset(to, 0, sizeof(*to));
	to->saddr = *place_of(call, backend);
	to->daddr = t->saddr;
	to->sport = backend->port ? backend->port : t->dport;
	to->dport = t->sport;
	to->proto = t->proto;
}

/* The entry of the way back, written to `to`. */
static __always_inline void return_to(struct flow *to, const struct call *call, __u32 index, const struct backend *backend, __u64 now)
{
	const struct tuple *t = &call->packet->tuple;
	__be16 port = backend->port ? backend->port : t->dport;
	__builtin_memset(to, 0, sizeof(*to));
	/* Read first, as it is written last: of a backend that is just being changed the flow is not a valid one. */
	to->generation = *(const volatile __u32 *)&backend->generation;
	asm volatile("" ::: "memory");
	to->created = to->seen = now;
	to->kind = FLOW_RETURN;
	to->ip = t->daddr;
	to->port = t->dport;
	to->ip_delta = ip_delta(place_of(call, backend), &t->daddr);
	to->port_delta = port == t->dport ? 0 : port_delta(port, t->dport);
	to->node = backend->node;
	to->network = backend->network;
	to->ifindex = call->ifindex;
	to->backend = index;
	to->frontend = call->frontend->id;
	to->idle_ms = call->frontend->idle_ms;
	to->again = call->again;
	if (call->client) {
		__builtin_memcpy(to->macs, call->client->macs, sizeof(to->macs));
		/* The kernel has no ways of IPv6 between nodes. */
		if (to->node && !call->packet->v6 && call->client->network == backend->network)
			to->node = ROUTED;
	}
}

/* Makes it that of the way there. */
static __always_inline void turn_round(struct flow *flow, const struct call *call, const struct backend *backend)
{
	const struct tuple *t = &call->packet->tuple;
	flow->kind = FLOW_FORWARD;
	flow->ip = *place_of(call, backend);
	flow->port = backend->port ? backend->port : t->dport;
	flow->ip_delta = ip_delta(&t->daddr, &flow->ip);
	if (flow->port_delta)
		flow->port_delta = port_delta(t->dport, flow->port);
	flow->ifindex = backend->ifindex;
	__builtin_memcpy(flow->macs, backend->macs, sizeof(flow->macs));
}

/* Begins a flow from a client to a backend, unless the backend has one of the same addresses and ports. */
static __always_inline int begin(const struct call *call, __u32 index, const struct backend *backend, __u64 now)
{
	const struct tuple *t = &call->packet->tuple;
	struct scratch *new = scratch();
	if (!new || is_none(place_of(call, backend)))
		return 0;
	return_to(&new->flow, call, index, backend, now);
	way_back_from(&new->way_back, call, backend);
	if (bpf_map_update_elem(&flows, &new->way_back, &new->flow, BPF_NOEXIST)) {
		struct flow *old = bpf_map_lookup_elem(&flows, &new->way_back);
		int same = old && old->kind == FLOW_RETURN && is_same(&old->ip, &t->daddr) && old->port == t->dport;
		if (old && !same && !is_over(&new->way_back, old, now)) {
			count(COLLISION);
			return 0;
		}
		if (bpf_map_update_elem(&flows, &new->way_back, &new->flow, BPF_ANY))
			return 0;
	}
	turn_round(&new->flow, call, backend);
	new->flow.sent_back = call->sent_back;
	if (bpf_map_update_elem(&flows, t, &new->flow, BPF_ANY))
		return 0;
	struct backend_counters *counters = bpf_map_lookup_elem(&backend_stats, &index);
	if (counters)
		counters->flows += 1;
	__u32 *flows_of = bpf_map_lookup_elem(&load, &index);
	if (flows_of)
		__sync_fetch_and_add(flows_of, 1);
	count(NEW_FLOW);
	return 1;
}

static __always_inline __u32 *slot(const struct frontend *frontend, __u32 turn)
{
	struct slot_key key = {frontend->id, frontend->generation, turn % frontend->slots};
	return bpf_map_lookup_elem(&slots, &key);
}

/* The backend in a place of the Maglev table, written to `index` if there is one. */
static __always_inline int in_table(const struct frontend *frontend, __u32 hash, __u32 *index)
{
	if (!frontend->table)
		return 0;
	__u32 place = hash % frontend->table;
	struct chunk_key key = {frontend->id, frontend->generation, place / CHUNK};
	struct chunk *chunk = bpf_map_lookup_elem(&chunks, &key);
	if (!chunk)
		return 0;
	*index = chunk->backends[place % CHUNK];
	return 1;
}

/* The finaliser of MurmurHash3. */
static __always_inline __u32 mixed(__u32 hash)
{
	hash = (hash ^ hash >> 16) * 0x85ebca6b;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35;
	return hash ^ hash >> 16;
}

/* An address in one word: an IPv4 address is itself. */
static __always_inline __u32 digest(const struct address *a)
{
	return a->word[0] ^ a->word[1] ^ a->word[2] ^ MAPPED ^ a->word[3];
}

/* The search for the backend with the fewest flows for its weight. */
struct least {
	const struct frontend *frontend;
	__u64 now;
	__u32 from, index, load, weight;
};

static long compare(__u32 turn, struct least *least)
{
	if (!least->frontend->slots)
		return 1;
	__u32 *index = slot(least->frontend, least->from + turn);
	if (!index)
		return 0;
	__u32 key = *index;
	struct backend *backend = bpf_map_lookup_elem(&backends, &key);
	__u32 *flows_of = bpf_map_lookup_elem(&load, &key);
	if (!backend || !flows_of || backend->passed_over > least->now)
		return 0;
	/* The one more is the flow that is to be placed. */
	__u32 flows_then = *flows_of + 1;
	if (least->weight && (__u64)flows_then * least->weight >= (__u64)least->load * backend->weight)
		return 0;
	least->index = key;
	least->load = flows_then;
	least->weight = backend->weight;
	return 0;
}

/* A backend for the nth try, written to `index`; the ticket is the frontend's own. */
static __always_inline int pick(const struct call *call, __u32 *ticket, int try, __u64 now, __u32 *index)
{
	const struct frontend *frontend = call->frontend;
	if (frontend->flags & FRONTEND_SOURCE)
		return in_table(frontend, mixed(digest(&call->packet->tuple.saddr)) + try * 0x9e3779b1, index);
	if (frontend->flags & FRONTEND_LEAST && !try) {
		struct least least = {.frontend = frontend, .now = now, .from = __sync_fetch_and_add(ticket, 1)};
		bpf_loop(frontend->slots < COMPARED ? frontend->slots : COMPARED, compare, &least, 0);
		*index = least.index;
		return least.weight != 0;
	}
	__u32 *found = slot(frontend, __sync_fetch_and_add(ticket, 1));
	if (found)
		*index = *found;
	return found != 0;
}

/* Whether a client outside says that it is of the backend's network. Its flow would take the packets that the backend
 * sends to the task of that address. */
static __always_inline int is_of_tasks(const struct call *call, const struct backend *backend)
{
	__u32 id = backend->network;
	struct network *network = call->client ? 0 : bpf_map_lookup_elem(&networks, &id);
	return network && network->mask && in_subnet(network, &call->packet->tuple.saddr);
}

/* Whether a new flow had better go elsewhere: what did not answer may be a whole node. */
static __always_inline int is_doubtful(const struct call *call, const struct backend *backend, __u64 now)
{
	return backend->passed_over > now || (call->avoided && backend->node == call->avoided);
}

/* Gives a new flow a backend. If that fails, `why` says why. */
static __always_inline int choose(const struct call *call, enum counter *why)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 id = call->frontend->id;
	__u32 *ticket = bpf_map_lookup_elem(&tickets, &id);
	if (!ticket || !call->frontend->slots)
		return 0;
	for (int try = 0; try < TRIES; try++) {
		__u32 index;
		if (!pick(call, ticket, call->sent_back + try, now, &index))
			continue;
		struct backend *backend = bpf_map_lookup_elem(&backends, &index);
		if (!backend || (try < LAST_TRIES && is_doubtful(call, backend, now)))
			continue;
		if (is_of_tasks(call, backend)) {
			*why = TO_RELAY_SOURCE;
			return 0;
		}
		/* No packet leaves by the link that it came by: to itself a task gets through the relay. */
		if (call->client && !backend->node && backend->ifindex == call->ifindex) {
			*why = TO_RELAY_SELF;
			return 0;
		}
		if (begin(call, index, backend, now))
			return 1;
	}
	return 0;
}

/* Whether a backend is none for a call, whoever chooses it: to itself a task gets through the relay. */
static __always_inline int is_unfit(const struct call *call, const struct backend *backend)
{
	return is_of_tasks(call, backend) || (call->client && !backend->node && backend->ifindex == call->ifindex);
}

/* The search for the member of a frontend that has a flow. */
struct search {
	const struct call *call;
	__u64 now;
	__u32 index;
	int found;
	int answered;
};

static long has_flow(__u32 number, struct search *search)
{
	const struct call *call = search->call;
	const struct tuple *t = &call->packet->tuple;
	struct chunk_key key = {call->frontend->id, call->frontend->generation, MEMBERS + number / CHUNK};
	struct chunk *chunk = bpf_map_lookup_elem(&chunks, &key);
	if (!chunk)
		return 1;
	__u32 index = chunk->backends[number % CHUNK];
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);
	struct scratch *room = scratch();
	if (!backend || !room)
		return 0;
	way_back_from(&room->way_back, call, backend);
	struct flow *back = bpf_map_lookup_elem(&flows, &room->way_back);
	if (!back || back->kind != FLOW_RETURN || !is_same(&back->ip, &t->daddr) || back->port != t->dport)
		return 0;
	if (back->backend != index || back->generation != backend->generation)
		return 0;
	/* Datagrams after so long are a new flow. */
	if (t->proto == IPPROTO_UDP && search->now - back->seen > back->idle_ms * MS)
		return 0;
	search->index = index;
	search->found = 1;
	search->answered = back->packets != 0;
	return 1;
}

/* Finds the flow whose way there was forgotten by its way back, and makes the entry again. */
static __always_inline int find(const struct call *call)
{
	struct search search = {.call = call, .now = bpf_ktime_get_coarse_ns()};
	bpf_loop(call->frontend->members < MAX_MEMBERS ? call->frontend->members : MAX_MEMBERS, has_flow, &search, 0);
	__u32 index = search.index;
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);
	struct scratch *found = scratch();
	if (!search.found || !backend || !found || is_unfit(call, backend))
		return 0;
	return_to(&found->flow, call, index, backend, search.now);
	turn_round(&found->flow, call, backend);
	/* Or its backend would soon be taken for dead, as only the first answer of all is taken notice of. */
	found->flow.answered = search.answered;
	if (bpf_map_update_elem(&flows, &call->packet->tuple, &found->flow, BPF_ANY))
		return 0;
	count(RECOVERED);
	return 1;
}

/* Begins anew a connection of which nothing is known, as it may be another node's, where every node would look for
 * its backend. */
static __always_inline int adopt(const struct call *call)
{
	const struct tuple *t = &call->packet->tuple;
	/* Without these it would begin a flow for whom none may be begun, or for what can be of no connection. */
	if ((call->packet->tcp & (TCP_ACK | TCP_RST)) != TCP_ACK || !allows(call->frontend, call->packet))
		return 0;
	__u32 index;
	if (!in_table(call->frontend, mixed(mixed(digest(&t->saddr)) ^ ((__u32)t->sport << 16 | t->dport)), &index))
		return 0;
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);
	if (!backend || is_unfit(call, backend) || !begin(call, index, backend, bpf_ktime_get_coarse_ns()))
		return 0;
	count(MAGLEV);
	return 1;
}

/* The frontend that a packet is addressed to. */
static __always_inline struct frontend *addressed(const struct packet *p)
{
	struct frontend_key key = {.ip = p->tuple.daddr, .port = p->tuple.dport, .proto = p->tuple.proto};
	struct frontend *frontend = bpf_map_lookup_elem(&frontends, &key);
	if (frontend)
		return frontend->network ? 0 : frontend;
	key.ip = (struct address){};
	frontend = bpf_map_lookup_elem(&frontends, &key);
	return frontend && bpf_map_lookup_elem(&own, &p->tuple.daddr) ? frontend : 0;
}

/* The same for a packet of a task, on a network: virtual addresses of this network too, and of no other. */
static __always_inline struct frontend *addressed_by_task(const struct packet *p, const struct network *network, __u32 id)
{
	struct frontend_key key = {.ip = p->tuple.daddr, .proto = p->tuple.proto};
	struct frontend *frontend = bpf_map_lookup_elem(&frontends, &key);
	if (frontend && frontend->network)
		return frontend->network == id ? frontend : 0;
	/* At the gateway's address the network has its resolver. */
	if (is_gateway(network, &p->tuple.daddr))
		return p->tuple.dport == htons(53) ? 0 : addressed(p);
	return in_subnet(network, &p->tuple.daddr) ? 0 : addressed(p);
}

/* Whether a socket of this node has the connection. */
static __noinline int is_relayed(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	if (p->v6) {
		/* Both begin with the addresses and the ports. */
		__builtin_memcpy(&tuple.ipv6, &p->tuple, sizeof(tuple.ipv6));
		socket = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	} else {
		tuple.ipv4.saddr = p->tuple.saddr.word[3];
		tuple.ipv4.daddr = p->tuple.daddr.word[3];
		tuple.ipv4.sport = p->tuple.sport;
		tuple.ipv4.dport = p->tuple.dport;
		socket = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	if (!socket)
		return 0;
	int connected = socket->state != BPF_TCP_LISTEN;
	bpf_sk_release(socket);
	return connected;
}
