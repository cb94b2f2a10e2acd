// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The fast path. A client's packet comes to node A (`from_outside`, on its network cards), which rewrites its
 * destination and sends it through the tunnel to node B (`from_mesh`, on the VXLAN link), which hands it to the
 * task. The reply (`from_task`, on the node's end of the task's veth pair) goes back through the tunnel to A
 * (`from_mesh`), which rewrites its source and sends it to the client. A task on A itself is reached without the
 * tunnel. A task may be the client too, of a published port or of a virtual address: then its packets come by
 * `from_task`, and its replies are handed to it. What is not ours goes to the next program and to the kernel. IPv4 and IPv6
 * are treated alike, and neither is made into the other. */
#include "choose.h"
#include "too_big.h"
#include "trace.h"

/* Whether the client is a task of this node. */
static __always_inline int is_for_task(const struct flow *f)
{
	return *(const __u32 *)f->macs || *(const __u32 *)(f->macs + 4);
}

/* A client that breaks a silence gets its answer: the entry of the flow's way back is made again if it was forgotten,
 * and follows the node's links and routes. */
static __noinline int keep_way_back(struct __sk_buff *skb, const struct packet *p, const struct flow *f)
{
	struct tuple way_back = way_back_of(p, f);
	struct scratch *new = scratch();
	if (!new)
		return 0;
	struct flow *kept = bpf_map_lookup_elem(&flows, &way_back);
	if (kept) {
		if (kept->kind == FLOW_RETURN && !is_for_task(kept))
			kept->ifindex = way_to_client(skb, p);
		return 0;
	}
	struct flow *back = &new->flow;
	*back = *f;
	back->kind = FLOW_RETURN;
	back->ip = p->tuple.daddr;
	back->port = p->tuple.dport;
	back->ip_delta = ip_delta(&f->ip, &back->ip);
	back->port_delta = f->port == back->port ? 0 : port_delta(f->port, back->port);
	/* How many they were is forgotten; that there were any is not, or a RST would be taken for a refusal. */
	back->packets = f->answered;
	back->bytes = 0;
	back->ack = 0;
	back->closing = 0;
	__builtin_memset(back->macs, 0, sizeof(back->macs));
	struct task *client = bpf_map_lookup_elem(&tasks, &p->tuple.saddr);
	if (client && client->ifindex == skb->ifindex) {
		back->ifindex = skb->ifindex;
		__builtin_memcpy(back->macs, client->macs, sizeof(back->macs));
	} else {
		back->ifindex = way_to_client(skb, p);
	}
	if (!bpf_map_update_elem(&flows, &way_back, back, BPF_NOEXIST))
		count(RECOVERED);
	return 0;
}

static __always_inline int forward(struct __sk_buff *skb, const struct packet *p, struct flow *f)
{
	struct network *network = bpf_map_lookup_elem(&networks, &f->network);
	if (!network)
		return drop(DROP_FAILED);
	if (f->node && is_too_big(skb, p, mtu_of(network, p)))
		return tell_too_big(skb, p, mtu_of(network, p), &p->tuple.daddr);
	if (book(p, f))
		keep_way_back(skb, p, f);
	book_backend(p, f->backend, DESTINATION);
	if (rewrite(skb, p, f, DESTINATION))
		return drop(DROP_FAILED);
	if (!f->node)
		return hand_over(skb, f->ifindex, f->macs);
	fit(skb, p, network);
	if (f->node == ROUTED)
		return bpf_redirect_neigh(network->ifindex, 0, 0, 0);
	return encapsulate(skb, network, f->node);
}

/* Whether a packet came from this node, if it came by a tunnel at all. */
static __always_inline int is_from_node(struct __sk_buff *skb, __u32 node)
{
	struct bpf_tunnel_key key = {};
	return !node || node == ROUTED || bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) || key.remote_ipv4 == node;
}

/* A task's packet to the client. */
static __always_inline int give_back(struct __sk_buff *skb, const struct packet *p, struct flow *f)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &f->backend);
	if (!backend || backend->generation != f->generation) {
		/* What it acknowledges is needed to end the connection. */
		book(p, f);
		return drop(DROP_GONE);
	}
	struct network *network = bpf_map_lookup_elem(&networks, &f->network);
	/* By another link it is not the task's. */
	if (!network || skb->ifindex != (f->node ? network->ifindex : backend->ifindex) || !is_from_node(skb, f->node))
		return drop(DROP_MISDIRECTED);
	if (p->tuple.proto == IPPROTO_UDP) {
		struct tuple way_there = way_there_of(p, f);
		if (is_idle(f, &way_there, bpf_ktime_get_coarse_ns()))
			return drop(DROP_IDLE);
		if (refuses(p))
			return refused(p, f);
	}
	if (p->tcp & TCP_RST)
		tell_reset(p, f);
	if (turns_away(p, f, backend)) {
		failed(f->backend, bpf_ktime_get_coarse_ns());
		/* Another one may take it when the client repeats its SYN, in a second. A second refusal is an answer. */
		if (backend->others && !f->again) {
			f->closing |= TCP_RST;
			return drop(DROP_REFUSED);
		}
	}
	answered(p, f, backend);
	book(p, f);
	book_backend(p, f->backend, SOURCE);
	if (rewrite(skb, p, f, SOURCE))
		return drop(DROP_FAILED);
	if (f->node)
		fit(skb, p, network);
	if (is_for_task(f))
		return hand_over(skb, f->ifindex, f->macs);
	return bpf_redirect_neigh(f->ifindex, 0, 0, 0);
}

/* What a packet can be that is not of a flow that is known and lives. */
enum past {
	UNKNOWN = 1,
	NEW, /* there was one before */
	AGAIN, /* its backend refused it or did not answer; it is to have another one */
	STALE, /* its backend is gone */
	/* And more: so many backends could not take it. */
	SENT = 16,
};

/* Whether a packet of a flow that is known begins a new one: enum past, or 0. The old one is over, or it was never
 * answered; in that case its backend gets no new flows for a while, and this one no other of its node. */
static __always_inline int begins_anew(const struct packet *p, struct flow *f)
{
	if (p->what != SEGMENT || (p->tuple.proto == IPPROTO_TCP && !is_syn(p)))
		return 0;
	struct scratch *room = scratch();
	if (!room)
		return 0;
	room->avoided = 0;
	if (p->tuple.proto == IPPROTO_UDP)
		return leaves(p, f, &room->avoided) ? NEW : 0;
	struct tuple way_back = way_back_of(p, f);
	struct flow *back = bpf_map_lookup_elem(&flows, &way_back);
	if (!back)
		return NEW;
	if (f->closing | back->closing) {
		if (back->packets || !(back->closing & TCP_RST))
			return NEW;
	} else {
		__u64 now = bpf_ktime_get_coarse_ns();
		if (back->packets || now - f->created < UNANSWERED)
			return 0;
		failed(f->backend, now);
		room->avoided = f->node;
		bpf_map_delete_elem(&flows, &way_back);
	}
	count(RETRIED);
	return AGAIN;
}

/* Leaves a flow to the relay from now on. */
static __always_inline int to_relay(const struct packet *p, const struct frontend *frontend, enum counter why)
{
	struct scratch *new = scratch();
	__u64 now = bpf_ktime_get_coarse_ns();
	if (new) {
		__builtin_memset(&new->flow, 0, sizeof(new->flow));
		new->flow.kind = FLOW_RELAY;
		new->flow.created = new->flow.seen = now;
		new->flow.frontend = frontend->id;
		new->flow.idle_ms = frontend->idle_ms;
		bpf_map_update_elem(&flows, &p->tuple, &new->flow, BPF_ANY);
	}
	return leave(why);
}

/* Not a verdict: the packet's flow is begun, or found again. */
#define BEGUN 0x7ffffffe

/* Begins the flow of a packet to a frontend, where none is known, or none that is valid still; what it is `past` says
 * (enum past). Returns BEGUN, or what becomes of the packet. As it is not static, the kernel verifies it once, and
 * not for everything that a packet may be. */
__noinline int begin_flow(struct __sk_buff *skb, const struct packet *p, const struct frontend *found, const struct task *client, int past)
{
	if (!p || !found)
		return drop(DROP_FAILED);
	/* A copy: the kernel may give the place of a value that the agent replaces to another frontend's, at any time. */
	const struct frontend copy = *found, *frontend = &copy;
	struct call call = {.packet = p, .frontend = frontend, .client = client, .again = past == AGAIN};
	if (past >= SENT)
		call.sent_back = past - SENT;
	struct scratch *room = scratch();
	if (room && (past == NEW || past == AGAIN))
		call.avoided = room->avoided;
	call.ifindex = client ? skb->ifindex : way_to_client(skb, p);
	if (frontend->slots && p->v6 && !(frontend->flags & FRONTEND_IPV6))
		return leave(TO_RELAY_NO_IPV6);
	int midway = p->tuple.proto == IPPROTO_TCP && !is_syn(p);
	if (midway && past == STALE)
		return leave(ENDED);
	if (midway && is_relayed(skb, p))
		return leave(TO_RELAY_FLOW);
	/* Of datagrams the first one tells nothing. */
	int searched = midway || (p->tuple.proto == IPPROTO_UDP && past == UNKNOWN && frontend->members <= SEARCHED);
	if ((searched && find(&call)) || (midway && adopt(&call)))
		return BEGUN;
	if (!frontend->slots)
		return leave(TO_RELAY_NO_BACKEND);
	if (midway)
		return drop(DROP_NO_FLOW);
	if (!allows(frontend, p))
		return leave(TO_RELAY_NOT_ALLOWED);
	enum counter why = TO_RELAY_COLLISION;
	if (call.sent_back < TRIES && choose(&call, &why))
		return BEGUN;
	return to_relay(p, frontend, why);
}

/* A packet to a frontend, of a flow that is not known, or no longer valid. */
static __always_inline int first(struct __sk_buff *skb, const struct packet *p, const struct frontend *frontend, const struct task *client, int past)
{
	int verdict = begin_flow(skb, p, frontend, client, past);
	if (verdict != BEGUN)
		return verdict;
	struct flow *f = bpf_map_lookup_elem(&flows, &p->tuple);
	return f ? forward(skb, p, f) : drop(DROP_FAILED);
}

/* Not a verdict: the packet may begin a flow. */
#define BEGINS 0x7fffffff

/* What becomes of a client's packet of a flow that is known. */
static __always_inline int known(struct __sk_buff *skb, const struct packet *p, struct flow *f, int *past)
{
	if (f->kind == FLOW_FORWARD) {
		if (!is_current(f)) {
			*past = STALE;
			return BEGINS;
		}
		*past = begins_anew(p, f);
		if (!*past)
			return forward(skb, p, f);
		/* Should the relay get the new one, its packets are not to be taken for the old one's. */
		bpf_map_delete_elem(&flows, &p->tuple);
		return BEGINS;
	}
	if (f->kind == FLOW_SENT_BACK) {
		*past = SENT + f->sent_back;
		return BEGINS;
	}
	if (f->kind != FLOW_RELAY)
		return TCX_NEXT;
	__u64 now = bpf_ktime_get_coarse_ns();
	if (is_syn(p) ? now - f->created >= IDLE : p->tuple.proto == IPPROTO_UDP && now - f->seen > f->idle_ms * MS)
		return BEGINS;
	book(p, f);
	return TCX_NEXT;
}

static __always_inline int judge_from_outside(struct __sk_buff *skb, const struct packet *p)
{
	if (p->what == OPTIONS)
		return leave(TO_RELAY_OPTIONS);
	if (p->what == FRAGMENT)
		return leave(TO_RELAY_FRAGMENT);
	if (p->what == NOT_OURS)
		return TCX_NEXT;
	int past = UNKNOWN;
	struct flow *f = bpf_map_lookup_elem(&flows, &p->tuple);
	int verdict = f ? known(skb, p, f, &past) : BEGINS;
	if (verdict != BEGINS)
		return verdict;
	if (p->what != SEGMENT)
		return TCX_NEXT;
	struct frontend *frontend = addressed(p);
	if (frontend)
		return first(skb, p, frontend, 0, past);
	return past == STALE ? leave(ENDED) : TCX_NEXT;
}

/* A flow's first packet, which the task's node sent back, as the task has a flow of the same addresses and ports
 * through another node. It comes once more by the client's link, and is given another backend there. */
static __always_inline int choose_again(struct __sk_buff *skb, const struct packet *p, __u32 node)
{
	struct tuple way_back = reversed(&p->tuple);
	struct flow *back = bpf_map_lookup_elem(&flows, &way_back);
	if (!back || back->kind != FLOW_RETURN || back->node != node || back->packets)
		return TCX_NEXT;
	struct tuple way_there = {.saddr = p->tuple.saddr, .daddr = back->ip, .sport = p->tuple.sport, .dport = back->port, .proto = p->tuple.proto};
	struct flow *there = bpf_map_lookup_elem(&flows, &way_there);
	if (!there || there->kind != FLOW_FORWARD || there->backend != back->backend)
		return TCX_NEXT;
	__u32 ifindex = back->ifindex;
	/* What took the backend's address for the frontend's does the reverse at the other end too. */
	if (rewrite(skb, p, back, DESTINATION))
		return drop(DROP_FAILED);
	there->kind = FLOW_SENT_BACK;
	there->sent_back += 1;
	bpf_map_delete_elem(&flows, &way_back);
	count(COLLISION);
	bpf_skb_change_type(skb, PACKET_HOST);
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

/* As keep_way_back, at the task's node. */
static __noinline int keep_back(const struct packet *p, const struct flow *f)
{
	struct tuple way_back = reversed(&p->tuple);
	struct scratch *new = scratch();
	if (!new || bpf_map_lookup_elem(&flows, &way_back))
		return 0;
	struct flow *back = &new->flow;
	*back = *f;
	back->kind = FLOW_BACK;
	back->created = f->seen;
	back->packets = back->bytes = 0;
	back->ack = 0;
	back->closing = 0;
	__builtin_memset(back->macs, 0, sizeof(back->macs));
	if (!bpf_map_update_elem(&flows, &way_back, back, BPF_NOEXIST))
		count(RECOVERED);
	return 0;
}

/* A packet that another node sends to a task of this one, for a client of its own. */
static __always_inline int deliver(struct __sk_buff *skb, const struct packet *p, struct flow *f, __u32 network)
{
	struct bpf_tunnel_key key = {};
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return drop(DROP_NOT_MEMBER);
	if (f && f->node == key.remote_ipv4 && !is_syn(p)) {
		if (book(p, f))
			keep_back(p, f);
		return hand_over(skb, f->ifindex, f->macs);
	}
	if (p->what == REST)
		return drop(DROP_COLLISION);
	struct task *task = bpf_map_lookup_elem(&tasks, &p->tuple.daddr);
	if (!task)
		return choose_again(skb, p, key.remote_ipv4);
	if (task->network != network)
		return drop(DROP_MISDIRECTED);
	if (!bpf_map_lookup_elem(&peers, &key.remote_ipv4))
		return drop(DROP_NOT_MEMBER);
	__u64 now = bpf_ktime_get_coarse_ns();
	struct tuple way_back = reversed(&p->tuple);
	struct flow *old = bpf_map_lookup_elem(&flows, &way_back);
	int begins = p->tuple.proto == IPPROTO_UDP || is_syn(p);
	/* What comes in the middle of a connection by another node than before has moved there. */
	int same = old && old->kind == FLOW_BACK && (!begins || old->node == key.remote_ipv4);
	/* That of a task which had the address before has gone with it. */
	int gone = old && old->kind == FLOW_BACK && old->ifindex != task->ifindex;
	if (old && !same && !gone && !is_over(&way_back, old, now)) {
		struct network *by = bpf_map_lookup_elem(&networks, &network);
		if (!begins || !by)
			return drop(DROP_COLLISION);
		count(SENT_BACK);
		return encapsulate(skb, by, key.remote_ipv4);
	}
	struct scratch *new = scratch();
	if (!new)
		return drop(DROP_FAILED);
	struct flow *flow = &new->flow;
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->created = flow->seen = now;
	flow->kind = FLOW_BACK;
	flow->node = key.remote_ipv4;
	flow->network = network;
	flow->ifindex = task->ifindex;
	if (bpf_map_update_elem(&flows, &way_back, flow, BPF_ANY))
		return drop(DROP_FAILED);
	flow->kind = FLOW_DELIVER;
	__builtin_memcpy(flow->macs, task->macs, sizeof(flow->macs));
	if (bpf_map_update_elem(&flows, &p->tuple, flow, BPF_ANY))
		return drop(DROP_FAILED);
	return hand_over(skb, flow->ifindex, flow->macs);
}

static __always_inline int judge_from_mesh(struct __sk_buff *skb, const struct packet *p)
{
	if (!is_of_flow(p))
		return TCX_NEXT;
	struct flow *f = bpf_map_lookup_elem(&flows, &p->tuple);
	if (f && f->kind == FLOW_RETURN && f->node)
		return give_back(skb, p, f);
	if (f && f->kind == FLOW_DELIVER)
		return deliver(skb, p, f, f->network);
	__u32 id = network_of(skb->ifindex);
	struct network *network = bpf_map_lookup_elem(&networks, &id);
	if (!id || !network || p->what != SEGMENT)
		return TCX_NEXT;
	int inside = in_subnet(network, &p->tuple.saddr);
	if (inside && !in_subnet(network, &p->tuple.daddr)) {
		if (!is_gateway(network, &p->tuple.daddr))
			return drop(DROP_NO_RETURN);
		/* This node is beside the subnet. The frame may have been sent back to it by a program, and so have the
		 * Ethernet address of the node that it came from. */
		bpf_skb_change_type(skb, PACKET_HOST);
		return TCX_NEXT;
	}
	/* Between addresses of the network the kernel routes, those of IPv4. */
	if (inside && !p->v6)
		return TCX_NEXT;
	return deliver(skb, p, 0, id);
}

/* A task's packet to the node that its client came to. */
static __always_inline int send_back(struct __sk_buff *skb, const struct packet *p, struct flow *f)
{
	struct network *network = bpf_map_lookup_elem(&networks, &f->network);
	if (!network || skb->ifindex != f->ifindex)
		return drop(DROP_MISDIRECTED);
	if (is_too_big(skb, p, mtu_of(network, p))) {
		struct address gateway = {{network->prefix[0], network->prefix[1], network->prefix[2], network->gateway}};
		return tell_too_big(skb, p, mtu_of(network, p), &gateway);
	}
	book(p, f);
	fit(skb, p, network);
	return encapsulate(skb, network, f->node);
}

/* A task's fragment of which the first was not seen, or packet with IP options. To a client outside it would show the task's address, and the client
 * could make nothing of it. */
static __always_inline int keep_inside(struct __sk_buff *skb, const struct packet *p)
{
	struct address to = mapped(0);
	__u32 at = ETH_HLEN + (p->v6 ? offsetof(struct ipv6hdr, daddr) : offsetof(struct iphdr, daddr));
	__u32 id = network_of(skb->ifindex);
	struct network *network = bpf_map_lookup_elem(&networks, &id);
	if (!id || !network || (p->v6 ? bpf_skb_load_bytes(skb, at, &to, sizeof(to)) : bpf_skb_load_bytes(skb, at, to.word + 3, 4)))
		return TCX_NEXT;
	return in_subnet(network, &to) || bpf_map_lookup_elem(&own, &to) ? TCX_NEXT : drop(DROP_NOT_CARRIED);
}

static __always_inline int judge_from_task(struct __sk_buff *skb, const struct packet *p)
{
	if (p->what == FRAGMENT || p->what == OPTIONS)
		return keep_inside(skb, p);
	if (!is_of_flow(p))
		return TCX_NEXT;
	struct flow *f = bpf_map_lookup_elem(&flows, &p->tuple);
	if (f && f->kind == FLOW_BACK)
		return send_back(skb, p, f);
	if (f && f->kind == FLOW_RETURN && !f->node)
		return give_back(skb, p, f);
	int past = UNKNOWN;
	int verdict = f ? known(skb, p, f, &past) : BEGINS;
	if (verdict != BEGINS)
		return verdict;
	__u32 id = network_of(skb->ifindex);
	struct network *network = bpf_map_lookup_elem(&networks, &id);
	if (!id || !network || p->what != SEGMENT)
		return TCX_NEXT;
	struct frontend *frontend = addressed_by_task(p, network, id);
	if (frontend) {
		struct task *client = bpf_map_lookup_elem(&tasks, &p->tuple.saddr);
		if (!client || client->ifindex != skb->ifindex)
			return leave(TO_RELAY_SOURCE);
		return first(skb, p, frontend, client, past);
	}
	if (past == STALE)
		return leave(ENDED);
	/* What else a task begins by itself, and what stays on the network or the node, is the kernel's. */
	if (is_syn(p) || in_subnet(network, &p->tuple.daddr) || bpf_map_lookup_elem(&own, &p->tuple.daddr))
		return TCX_NEXT;
	return drop(DROP_NO_BACK);
}

#define PROGRAM(name, number)                                                                                \
	SEC("classifier")                                                                                    \
	int name(struct __sk_buff *skb)                                                                      \
	{                                                                                                    \
		struct packet p;                                                                             \
		parse(skb, &p);                                                                              \
		int verdict = judge_##name(skb, &p);                                                         \
		if (__builtin_expect(p.first, 0) && verdict == TCX_REDIRECT)                                 \
			remember(&p);                                                                        \
		return conclude(skb, &p, number, verdict);                                                   \
	}

PROGRAM(from_outside, FROM_OUTSIDE)
PROGRAM(from_mesh, FROM_MESH)
PROGRAM(from_task, FROM_TASK)

/* Sends a packet of the agent's on as if it came from a flow's client: it runs the program itself, by BPF_PROG_TEST_RUN.
 * To tasks' IPv6 addresses the kernel has no ways. */
SEC("classifier")
int from_agent(struct __sk_buff *skb)
{
	struct packet p;
	parse(skb, &p);
	struct flow *f = bpf_map_lookup_elem(&flows, &p.tuple);
	if (p.what != SEGMENT || !f || f->kind != FLOW_FORWARD)
		return TCX_DROP;
	__u32 ifindex = f->ifindex, node = f->node;
	__u8 macs[12];
	__builtin_memcpy(macs, f->macs, sizeof(macs));
	struct network *network = bpf_map_lookup_elem(&networks, &f->network);
	if (!network || node == ROUTED || rewrite(skb, &p, f, DESTINATION))
		return TCX_DROP;
	if (node) {
		ifindex = network->ifindex;
		if (wrap(skb, network, node))
			return TCX_DROP;
	} else if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0)) {
		return TCX_DROP;
	}
	return bpf_clone_redirect(skb, ifindex, 0) ? TCX_DROP : TCX_PASS;
}

char licence[] SEC("license") = "Dual BSD/GPL";
