/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Flows: their books, and the choice of a backend for a new one. */
#pragma once
#include "policy.h"

/* A flow without a packet for this long may give way to one of the same addresses and ports. */
#define IDLE (60000 * MS)
/* How many backends are tried for one packet, and from which try on those passed over count again. */
#define TRIES 8
#define LAST_TRIES 6

static __always_inline void book(const struct packet *p, struct flow *f)
{
	f->packets += 1;
	f->bytes += p->data;
	if (p->data || p->tuple.proto == IPPROTO_UDP || p->tcp & (TCP_SYN | TCP_FIN | TCP_RST))
		f->seen = bpf_ktime_get_coarse_ns();
	if (p->tcp & TCP_ACK)
		f->ack = p->ack;
	f->closing |= p->tcp & (TCP_FIN | TCP_RST);
}

static __always_inline void book_backend(const struct packet *p, __u32 backend, enum end to)
{
	struct backend_counters *counters = bpf_map_lookup_elem(&backend_stats, &backend);
	if (!counters)
		return;
	if (to == DESTINATION)
		counters->bytes_in += p->data;
	else
		counters->bytes_out += p->data;
}

/* Whether a flow's backend is still the one that it was. */
static __always_inline int is_current(const struct flow *f)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &f->backend);
	return backend && backend->generation == f->generation;
}

/* Whether a flow from a task may be taken for over when another wants its way. */
static __always_inline int is_over(const struct tuple *way, const struct flow *f, __u64 now)
{
	if (f->closing)
		return 1;
	if (now - f->seen > IDLE) {
		/* Data may go the other way only. */
		struct tuple other_way = reversed(way);
		if (f->kind == FLOW_RETURN) {
			other_way.daddr = f->ip;
			other_way.dport = f->port;
		}
		struct flow *other = bpf_map_lookup_elem(&flows, &other_way);
		if (!other || now - other->seen > IDLE)
			return 1;
	}
	if (f->kind == FLOW_RETURN)
		return !is_current(f);
	return f->kind == FLOW_BACK && !f->packets && now - f->created > UNANSWERED;
}

/* A packet that is to begin a flow, and who sent it. */
struct call {
	const struct packet *packet;
	const struct frontend *frontend;
	const struct task *client; /* if it is a task of this node */
};

/* Begins a flow from a client to a backend, unless the backend has one of the same addresses and ports. */
static __always_inline struct flow *begin(struct __sk_buff *skb, const struct call *call, __u32 index, const struct backend *backend, __u64 now)
{
	const struct packet *p = call->packet;
	const struct frontend *frontend = call->frontend;
	__be16 port = backend->port ? backend->port : p->tuple.dport;
	struct tuple way_back = {.saddr = backend->ip, .daddr = p->tuple.saddr, .sport = port, .dport = p->tuple.sport, .proto = p->tuple.proto};
	struct flow flow = {
		.created = now,
		.seen = now,
		.kind = FLOW_RETURN,
		.ip = p->tuple.daddr,
		.port = p->tuple.dport,
		.ip_delta = ip_delta(backend->ip, p->tuple.daddr),
		.port_delta = port_delta(port, p->tuple.dport),
		.node = backend->node,
		.network = backend->network,
		.ifindex = skb->ifindex,
		.backend = index,
		.generation = backend->generation,
		.frontend = frontend->id,
		.idle_ms = frontend->idle_ms,
	};
	if (port == p->tuple.dport)
		flow.port_delta = 0;
	if (call->client) {
		__builtin_memcpy(flow.macs, call->client->macs, sizeof(flow.macs));
		if (flow.node && call->client->network == backend->network)
			flow.node = ROUTED;
	}
	if (bpf_map_update_elem(&flows, &way_back, &flow, BPF_NOEXIST)) {
		struct flow *old = bpf_map_lookup_elem(&flows, &way_back);
		int same = old && old->kind == FLOW_RETURN && old->ip == p->tuple.daddr && old->port == p->tuple.dport;
		if (old && !same && !is_over(&way_back, old, now)) {
			count(COLLISION);
			return 0;
		}
		if (bpf_map_update_elem(&flows, &way_back, &flow, BPF_ANY))
			return 0;
	}
	flow.kind = FLOW_FORWARD;
	flow.ip = backend->ip;
	flow.port = port;
	flow.ip_delta = ip_delta(p->tuple.daddr, backend->ip);
	if (flow.port_delta)
		flow.port_delta = port_delta(p->tuple.dport, port);
	flow.ifindex = backend->ifindex;
	__builtin_memcpy(flow.macs, backend->macs, sizeof(flow.macs));
	if (bpf_map_update_elem(&flows, &p->tuple, &flow, BPF_ANY))
		return 0;
	struct backend_counters *counters = bpf_map_lookup_elem(&backend_stats, &index);
	if (counters)
		counters->flows += 1;
	count(NEW_FLOW);
	return bpf_map_lookup_elem(&flows, &p->tuple);
}

/* Gives a new flow the backend whose turn it is. If there is none, `why` says why. */
static __always_inline struct flow *choose(struct __sk_buff *skb, const struct call *call, enum counter *why)
{
	const struct frontend *frontend = call->frontend;
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 id = frontend->id;
	__u32 *tickets_of = bpf_map_lookup_elem(&tickets, &id);
	if (!tickets_of)
		return 0;
	for (int i = 0; i < TRIES; i++) {
		__u32 count_of = frontend->slots;
		if (!count_of)
			return 0;
		struct slot_key key = {frontend->id, frontend->generation, __sync_fetch_and_add(tickets_of, 1) % count_of};
		__u32 *index = bpf_map_lookup_elem(&slots, &key);
		if (!index)
			continue;
		__u32 chosen = *index;
		struct backend *backend = bpf_map_lookup_elem(&backends, &chosen);
		if (!backend || (i < LAST_TRIES && backend->passed_over > now))
			continue;
		/* No packet leaves by the link that it came by: to itself a task gets through the relay. */
		if (call->client && !backend->node && backend->ifindex == skb->ifindex) {
			*why = TO_RELAY_SELF;
			return 0;
		}
		struct flow *flow = begin(skb, call, chosen, backend, now);
		if (flow)
			return flow;
	}
	return 0;
}

/* The frontend that a packet is addressed to. */
static __always_inline struct frontend *addressed(const struct packet *p)
{
	struct frontend_key key = {.ip = p->tuple.daddr, .port = p->tuple.dport, .proto = p->tuple.proto};
	struct frontend *frontend = bpf_map_lookup_elem(&frontends, &key);
	if (frontend)
		return frontend->network ? 0 : frontend;
	key.ip = 0;
	frontend = bpf_map_lookup_elem(&frontends, &key);
	return frontend && bpf_map_lookup_elem(&own, &p->tuple.daddr) ? frontend : 0;
}

/* The same for a packet of a task, on a network: virtual addresses of this network too, and of no other. */
static __always_inline struct frontend *addressed_by_task(const struct packet *p, const struct network *network, __u32 id)
{
	if (in_subnet(network, p->tuple.daddr)) {
		struct frontend_key key = {.ip = p->tuple.daddr, .proto = p->tuple.proto};
		struct frontend *frontend = bpf_map_lookup_elem(&frontends, &key);
		if (frontend)
			return frontend->network == id ? frontend : 0;
		/* At the gateway's address the network has its resolver. */
		if (p->tuple.daddr != network->gateway || p->tuple.dport == htons(53))
			return 0;
	}
	return addressed(p);
}

/* Whether a socket of this node has the connection. */
static __always_inline int is_relayed(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {.ipv4 = {p->tuple.saddr, p->tuple.daddr, p->tuple.sport, p->tuple.dport}};
	struct bpf_sock *socket = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return 0;
	int connected = socket->state != BPF_TCP_LISTEN;
	bpf_sk_release(socket);
	return connected;
}
