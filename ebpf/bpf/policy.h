/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The policies of services: who may begin a flow, when one is over that says nothing of it, and which backend is
 * taken for dead. They mean what they mean in the relay. The idle timeout of TCP is the agent's (src/plane/sweep.rs):
 * a connection has to be told that it is over. */
#pragma once
#include "packet.h"

#define MS 1000000ull
/* A client that repeats itself after this long without an answer goes to another backend. The first retransmission
 * of a SYN comes after 1 s (RFC 6298). */
#define UNANSWERED (800 * MS)
/* For how long a backend that did not answer gets no new flows, while there are others. */
#define PASSED_OVER (10000 * MS)

/* Whether a client may begin flows. */
static __always_inline int allows(const struct frontend *frontend, const struct packet *p)
{
	if (!(frontend->flags & FRONTEND_LISTED))
		return 1;
	struct allow_key key = {.length = 160, .client = {.frontend = frontend->id, .ip = p->tuple.saddr}};
	__u32 *version = bpf_map_lookup_elem(&allowed, &key);
	return version && *version == (p->v6 ? 6 : 4);
}

/* Has new flows pass a backend over for a while. */
static __always_inline void failed(__u32 index, __u64 now)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);
	if (backend)
		backend->passed_over = now + PASSED_OVER;
	struct backend_counters *counters = bpf_map_lookup_elem(&backend_stats, &index);
	if (counters)
		counters->failures += 1;
}

/* The way of the replies to a client's packet. */
static __always_inline struct tuple way_back_of(const struct packet *p, const struct flow *f)
{
	return (struct tuple){.saddr = f->ip, .daddr = p->tuple.saddr, .sport = f->port, .dport = p->tuple.sport, .proto = p->tuple.proto};
}

/* The way of the client's packets that a reply answers. */
static __always_inline struct tuple way_there_of(const struct packet *p, const struct flow *f)
{
	return (struct tuple){.saddr = p->tuple.daddr, .daddr = f->ip, .sport = p->tuple.dport, .dport = f->port, .proto = p->tuple.proto};
}

/* Whether no datagram has moved for the frontend's time, in the packet's direction and the other one. */
static __always_inline int is_idle(const struct flow *f, const struct tuple *other_way, __u64 now)
{
	__u64 idle = f->idle_ms * MS;
	if (!idle || now - f->seen <= idle)
		return 0;
	struct flow *other = bpf_map_lookup_elem(&flows, other_way);
	return !other || now - other->seen > idle;
}

/* Whether a client repeats itself to a backend that seems to be dead: it has not answered this flow, nor anyone
 * since this flow began, and the frontend is one whose backends answer. So a service that never answers (syslog,
 * statsd) is left as it is, and so is a client whom a backend that is well chooses to ignore. */
static __always_inline int seems_dead(const struct flow *f, __u64 now)
{
	if (f->answered || now - f->created < UNANSWERED)
		return 0;
	__u32 frontend = f->frontend, index = f->backend;
	__u64 *last = bpf_map_lookup_elem(&answers, &frontend);
	if (!last || !*last)
		return 0;
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);
	return backend && backend->answered < f->created;
}

/* Whether a client's datagram begins a new flow although one is known, which may go to another backend. The replies of
 * the backend that it leaves still reach the client, should they come: they may only be late. If it leaves one that seems
 * to be dead, that one's node is to be `avoided`. */
static __always_inline int leaves(const struct packet *p, const struct flow *f, __u32 *avoided)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct tuple way_back = way_back_of(p, f);
	if (is_idle(f, &way_back, now))
		return 1;
	if (!seems_dead(f, now))
		return 0;
	failed(f->backend, now);
	*avoided = f->node;
	count(RETRIED);
	return 1;
}

/* Takes notice of the first answer of a flow: its backend is alive. */
static __always_inline void answered(const struct packet *p, const struct flow *back, struct backend *backend)
{
	if (back->packets || p->what != SEGMENT || p->tcp & TCP_RST)
		return;
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 frontend = back->frontend;
	__u64 *last = bpf_map_lookup_elem(&answers, &frontend);
	if (last)
		*last = now;
	backend->answered = now;
	backend->passed_over = 0;
	struct tuple way_there = way_there_of(p, back);
	struct flow *there = bpf_map_lookup_elem(&flows, &way_there);
	if (there && there->backend == back->backend)
		there->answered = 1;
}

/* Whether a task refuses a connection. Of a port that the client chose that says nothing, and a RST without ACK answers
 * no SYN (RFC 9293, section 3.10.7.1): the client is in a connection that the task does not know, and has to learn it. */
static __always_inline int turns_away(const struct packet *p, const struct flow *back, const struct backend *backend)
{
	return (p->tcp & (TCP_RST | TCP_ACK)) == (TCP_RST | TCP_ACK) && !back->packets && backend->port;
}

/* Has both directions of a connection know that the task reset it. */
static __always_inline void tell_reset(const struct packet *p, const struct flow *back)
{
	struct tuple way_there = way_there_of(p, back);
	struct flow *there = bpf_map_lookup_elem(&flows, &way_there);
	if (there && there->backend == back->backend)
		there->closing |= TCP_RST;
}

/* Whether an ICMP error says that a task does not take datagrams: its port is closed, or there is no way to it. The
 * client need not know; its next datagram goes to another backend, as the relay has it. */
static __always_inline int refuses(const struct packet *p)
{
	return p->unreachable && p->tuple.proto == IPPROTO_UDP;
}

/* Forgets a flow whose backend refused it. */
static __always_inline int refused(const struct packet *p, const struct flow *back)
{
	struct tuple way_there = way_there_of(p, back);
	struct flow *there = bpf_map_lookup_elem(&flows, &way_there);
	failed(back->backend, bpf_ktime_get_coarse_ns());
	if (there && there->backend == back->backend)
		bpf_map_delete_elem(&flows, &way_there);
	bpf_map_delete_elem(&flows, &p->tuple);
	return drop(DROP_REFUSED);
}
