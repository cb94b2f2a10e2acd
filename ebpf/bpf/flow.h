/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Flows: their books, and when they are over. */
#pragma once
#include "policy.h"

/* Room for a flow that is made and the way back of it: a program has 512 bytes of stack, with all that it calls. No
 * program interrupts another one of its CPU. */
struct scratch {
	struct flow flow;
	struct tuple way_back;
	struct bpf_fib_lookup route;
	__u32 avoided; /* as of a call, from where it is found out to where the call is made */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

static __always_inline struct scratch *scratch(void)
{
	__u32 key = 0;
	return bpf_map_lookup_elem(&scratches, &key);
}

/* The link by which a packet's sender is answered: that of the node's own answers, by whatever routes and rules there
 * are. It is the link that the packet came by if the kernel does not say, as of IPv6. */
static __always_inline __u32 way_to_client(struct __sk_buff *skb, const struct packet *p)
{
	struct scratch *room = scratch();
	__u32 came_by = skb->ifindex;
	if (!room || p->v6)
		return came_by;
	struct bpf_fib_lookup *route = &room->route;
	__builtin_memset(route, 0, sizeof(*route));
	route->family = AF_INET;
	route->l4_protocol = p->tuple.proto;
	route->sport = p->tuple.dport;
	route->dport = p->tuple.sport;
	route->ifindex = LOOPBACK_IFINDEX;
	route->src.word[0] = p->tuple.daddr.word[3];
	route->dst.word[0] = p->tuple.saddr.word[3];
	return bpf_fib_lookup(skb, route, sizeof(*route), BPF_FIB_LOOKUP_SKIP_NEIGH) ? came_by : route->ifindex;
}

/* A flow without a packet for this long may give way to one of the same addresses and ports. */
#define IDLE (60000 * MS)

/* After this long without a byte the other direction's entry may have been forgotten meanwhile. */
#define SILENCE (1000 * MS)

/* Tells whether it breaks a silence. */
static __always_inline int book(const struct packet *p, struct flow *f)
{
	/* An error is no word of either end: it answers nothing, and keeps nothing alive. */
	if (p->what == ICMP_ERROR)
		return 0;
	__u64 before = f->seen;
	f->packets += 1;
	f->bytes += p->data;
	if (p->tcp & TCP_ACK)
		f->ack = p->ack;
	/* Who sends on was not reset: anyone may have sent that. */
	if (__builtin_expect(f->closing & TCP_RST, 0) && !(p->tcp & (TCP_RST | TCP_SYN)))
		f->closing &= ~TCP_RST;
	f->closing |= p->tcp & (TCP_FIN | TCP_RST);
	if (!p->data && p->tuple.proto != IPPROTO_UDP && !(p->tcp & (TCP_SYN | TCP_FIN | TCP_RST)))
		return 0;
	f->seen = bpf_ktime_get_coarse_ns();
	return f->seen - before > SILENCE;
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
static __noinline int is_over(const struct tuple *way, const struct flow *f, __u64 now)
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
