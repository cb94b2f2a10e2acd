/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What becomes of a packet, told to whoever listens (src/trace.rs). While nobody does, it costs the load of a word and
 * a branch that is not taken. */
#pragma once
#include "packet.h"

enum program { FROM_OUTSIDE = 1, FROM_MESH = 2, FROM_TASK = 3 };

/* Whose packets are told. A client is the source on its way to a task, and the destination on the way back. */
struct traced {
	__u64 until; /* 0: nobody listens; nobody does after this either, as who listens moves it on */
	struct address client;
	struct address frontend; /* none is any */
	__be16 client_port;  /* 0 is any */
	__be16 frontend_port; /* 0 is any */
	__u8 proto;	     /* 0 is any */
	__u8 pad[3];
};

/* One packet met by one program. */
struct event {
	__u64 time;
	struct tuple before, after; /* the flow's; of an ICMP error that of a packet which goes the error's own way */
	__u32 cpu;
	__u32 ifindex; /* the link that it came by */
	__u32 length;  /* without the Ethernet header, after what was done to it */
	__u32 node;    /* of its flow: the other end of the tunnel, host order; 0 is none, ROUTED the kernel's choice */
	__u32 backend, frontend; /* of its flow, where its kind has them */
	__u8 program;	/* enum program */
	__u8 action;	/* TCX's */
	__u8 reason;	/* enum counter, plus 1; 0 is none */
	__u8 kind;	/* of its flow, enum flow_kind; 0 is no flow */
	__u8 what;	/* enum what */
	__u8 tcp;	/* flags */
	__u8 first;	/* whether it is the first of its flow in this direction */
	__u8 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

/* In a section of its own, so that it is a map of its own. */
struct traced traced SEC(".bss.traced");

static __always_inline int is_client(const struct address *ip, __be16 port)
{
	return is_same(ip, &traced.client) && (!traced.client_port || !port || port == traced.client_port);
}

static __always_inline int is_frontend(const struct address *ip, __be16 port)
{
	return (is_none(&traced.frontend) || is_same(ip, &traced.frontend)) && (!traced.frontend_port || !port || port == traced.frontend_port);
}

/* Whether the event is one that is listened for. The frontend is to be seen where clients, tasks among them, come in,
 * and where their replies leave; on the way between them it is not. */
static __noinline int is_wanted(const struct event *e)
{
	if (traced.proto && e->before.proto != traced.proto)
		return 0;
	int sent = is_client(&e->before.saddr, e->before.sport);
	if (!sent && !is_client(&e->before.daddr, e->before.dport))
		return 0;
	int enters = e->program == FROM_OUTSIDE || (e->program == FROM_TASK && sent);
	/* Not ours: of use to who asks about a frontend, and else too much. */
	if (e->action == (__u8)TCX_NEXT && !e->reason && e->kind != FLOW_RELAY && (!enters || !traced.frontend_port))
		return 0;
	if (enters)
		return is_frontend(&e->before.daddr, e->before.dport);
	return e->kind != FLOW_RETURN || e->action != TCX_REDIRECT || is_frontend(&e->after.saddr, e->after.sport);
}

/* Reads the ends of a packet as it is now. */
static __always_inline void read_ends(struct __sk_buff *skb, struct tuple *t, __u8 what)
{
	/* Without options addresses and ports stand in a row. Behind options, and in the later fragments, there are
	 * other things. */
	__u32 ports = what == FRAGMENT || what == OPTIONS || what == REST ? 0 : 4;
	if (skb->protocol == htons(ETH_P_IPV6)) {
		bpf_skb_load_bytes(skb, (what == ICMP_ERROR ? INNER_IPV6 : ETH_HLEN) + offsetof(struct ipv6hdr, saddr), t, 32 + ports);
	} else {
		__be32 ends[3] = {};
		bpf_skb_load_bytes(skb, (what == ICMP_ERROR ? INNER_IP : ETH_HLEN) + offsetof(struct iphdr, saddr), ends, 8 + ports);
		t->saddr = mapped(ends[0]);
		t->daddr = mapped(ends[1]);
		__builtin_memcpy(&t->sport, ends + 2, 4);
	}
	if (what == ICMP_ERROR)
		*t = reversed(t);
}

static __noinline int tell(struct __sk_buff *skb, const struct tuple *tuple, __u32 program, __u32 verdict, __u32 seen)
{
	if (bpf_ktime_get_coarse_ns() > traced.until) {
		traced.until = 0;
		return 0;
	}
	/* Most packets are others'; those without a tuple are looked at below. */
	if (tuple->proto && !is_client(&tuple->saddr, tuple->sport) && !is_client(&tuple->daddr, tuple->dport))
		return 0;
	struct event e = {
		.time = bpf_ktime_get_ns(),
		.before = *tuple,
		.cpu = bpf_get_smp_processor_id(),
		.ifindex = skb->ifindex,
		.length = skb->len - ETH_HLEN,
		.program = program,
		.action = verdict,
		.what = seen >> 8,
		.tcp = seen,
	};
	if (e.what == NOT_OURS)
		return 0;
	if (e.what == FRAGMENT || e.what == OPTIONS) {
		read_ends(skb, &e.before, e.what);
		/* That of IPv6 is in the extension header. */
		__u32 at = skb->protocol == htons(ETH_P_IPV6) ? L4_OF_V6 : ETH_HLEN + offsetof(struct iphdr, protocol);
		bpf_skb_load_bytes(skb, at, &e.before.proto, 1);
	}
	/* TCX_NEXT, without a reason, has all bits set. */
	if (e.action != TCX_REDIRECT && verdict != (__u32)TCX_NEXT)
		e.reason = verdict >> 8;
	e.after = e.before;
	if (e.action == TCX_REDIRECT)
		read_ends(skb, &e.after, e.what);
	struct flow *f = bpf_map_lookup_elem(&flows, &e.before);
	if (f) {
		e.kind = f->kind;
		e.node = f->node;
		e.backend = f->backend;
		e.frontend = f->frontend;
		/* The first that is delivered makes the flow, and is not in its books. */
		e.first = f->packets <= (f->kind != FLOW_DELIVER);
	}
	if (is_wanted(&e) && bpf_ringbuf_output(&events, &e, sizeof(e), 0))
		count(TRACE_LOST);
	return 0;
}

/* Ends a program with its verdict. */
static __always_inline int conclude(struct __sk_buff *skb, const struct packet *p, enum program program, int verdict)
{
	if (__builtin_expect(traced.until != 0, 0))
		tell(skb, &p->tuple, program, verdict, p->what << 8 | p->tcp);
	return (signed char)verdict;
}
