/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps and what is in them. src/layout.rs says the same in Rust, and a test compares the two. Addresses
 * and ports are in network order unless a comment says otherwise; times are of the monotonic clock, in ns.
 *
 * After a change here the next build copies what is served out of the old maps, by the names of fields (src/inherit.rs):
 * so what means something else gets another name, 0 in a new field means what was so before, and ABI in src/lib.rs
 * counts up. */
#pragma once
#include "kernel.h"

/* Not an address of a node: between two tasks of one network the kernel knows the way, and the other node needs no
 * fast path. */
#define ROUTED 0xffffffff

#define MAPPED htonl(0xffff)

static __always_inline struct address mapped(__be32 ip)
{
	return (struct address){{0, 0, MAPPED, ip}};
}

static __always_inline int is_none(const struct address *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

static __always_inline int is_same(const struct address *a, const struct address *b)
{
	return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) | (a->word[3] ^ b->word[3]));
}

/* A packet's way: where from, where to. */
struct tuple {
	struct address saddr, daddr;
	__be16 sport, dport;
	__u8 proto, pad[3];
} __attribute__((aligned(8)));

/* What a packet of a flow is to become. */
enum flow_kind {
	/* Client to frontend, at the node that it came to: to the backend. */
	FLOW_FORWARD = 1,
	/* Task to client, at the node that the client came to: from the frontend. */
	FLOW_RETURN = 2,
	/* Client to task, at the task's node: to the task. */
	FLOW_DELIVER = 3,
	/* Task to client, at the task's node: to the node that the client came to. */
	FLOW_BACK = 4,
	/* Client to frontend: the relay has it. */
	FLOW_RELAY = 5,
	/* Client to frontend: the backend could not take it, and another is to be chosen. */
	FLOW_SENT_BACK = 6,
};

/* All that is needed to send a packet of a flow on. */
struct flow {
	__u64 created;
	__u64 seen; /* when a byte passed last in this direction, or a datagram */
	__u64 packets;
	__u64 bytes; /* of data, without headers */
	struct address ip; /* the new address, of the end that is rewritten */
	__be16 port;	 /* the new port */
	__u8 kind;	 /* enum flow_kind */
	__u8 closing;	 /* TCP_FIN and TCP_RST, as far as they were seen in this direction */
	__u32 ip_delta;	 /* what the new address changes in a checksum */
	__u32 port_delta;
	__u32 node;	 /* the other end of the tunnel, host order; 0 is none, ROUTED the kernel's choice */
	__u32 network;	 /* the task's: its place in `networks` */
	__u32 ifindex;	 /* the link to send by, where there is no tunnel; of FLOW_BACK, the task's own */
	__u32 backend, generation;
	__u8 macs[12];	 /* destination and source, towards a local task; of FLOW_RETURN zero if the client is none */
	__u32 frontend;	 /* its id */
	__u32 idle_ms;	 /* after so long without a byte the flow is over; 0 is never */
	__u32 ack;	 /* TCP: what this direction's sender acknowledged last, network order */
	__u8 answered;	 /* of FLOW_FORWARD: the backend has replied */
	__u8 again;	 /* another backend had it before, and refused or did not answer */
	__u8 sent_back; /* of FLOW_FORWARD: how many backends could not take it */
	__u8 pad[5];
};

struct frontend_key {
	struct address ip; /* none is every address of the node */
	__be16 port; /* 0 is every port, of a virtual address */
	__u8 proto, pad;
};

struct frontend {
	__u32 id, generation, slots;
	__u32 network; /* the only one that reaches it; 0 is every one, and the outside */
	__u32 flags;
	__u32 idle_ms; /* of flows that begin now; 0 is never */
	__u32 table;   /* the size of its Maglev table; 0 is none */
	__u32 members; /* how many backends it has, those that only keep their flows among them */
};

/* It has a list of clients that may begin flows. */
#define FRONTEND_LISTED 1
/* A new flow goes to the backend with the fewest; else in turn. */
#define FRONTEND_LEAST 2
/* The client's address decides to which. */
#define FRONTEND_SOURCE 4
/* All its backends that take flows have IPv6 addresses too. */
#define FRONTEND_IPV6 8

/* A client or a prefix of clients on a frontend's list. */
struct listed {
	__u32 frontend;
	struct address ip;
};

struct allow_key {
	__u32 length; /* 32, and the length of the prefix: of one of IPv4 96 more than it says */
	struct listed client;
};

/* Backends in a list of a frontend: its Maglev table, or behind MEMBERS its members. */
struct chunk_key {
	__u32 frontend, generation, number;
};

#define CHUNK 64
#define MEMBERS 0x10000
#define MAX_MEMBERS 256

struct chunk {
	__u32 backends[CHUNK];
};

struct slot_key {
	__u32 frontend, generation, slot;
};

/* A backend of one frontend. Its place in the array is used again with another generation. */
struct backend {
	__u64 passed_over; /* until when it gets no new flows */
	__u64 answered;	   /* when it last answered a flow for the first time */
	struct address ip;
	struct address ip6; /* for IPv6 clients; may be none */
	__be16 port; /* 0 is the one dialled */
	__u16 draining; /* it keeps the flows that it has */
	__u32 node; /* host order; 0 is this one, ROUTED another one */
	__u32 ifindex;
	__u8 macs[12];
	__u32 generation;
	__u32 network, weight;
	__u32 others; /* whether another backend of its frontend takes flows */
};

struct backend_counters {
	__u64 flows, bytes_in, bytes_out, failures; /* bytes of data, without headers */
};

/* A task of this node. */
struct task {
	__u32 ifindex; /* the node's end of its veth pair */
	__u8 macs[12]; /* the task's, the gateway's */
	__u32 network;
};

/* What the agent alone reads: after a restart it learns from these what is served. Text ends at the first zero. */
struct backend_label {
	__u8 node[16], task[64], name[128];
	__u32 frontend;
	__u16 weight;
	__u8 local, draining;
};

struct frontend_label {
	__u8 service[64], name[128];
	__u8 network[64]; /* of a virtual address */
	__u32 tcp_idle_ms; /* 0 is never */
	__u32 udp_idle_ms;
	__u32 local_first;
};

/* A network of this node. Its place in the array stays its own as long as the node is on it; place 0 is no one's. */
struct network {
	__u32 ifindex; /* its VXLAN link */
	__u32 vni;
	__be32 subnet, mask;
	__u32 underlay; /* this node's address there, host order */
	__u32 mtu;	/* the largest packet that fits the tunnel */
	__be32 gateway;
	__be32 prefix[3]; /* of its IPv6 addresses, which end in the IPv4 ones */
};

/* The agent's network namespace. */
struct host {
	__u64 netns; /* its cookie; 0 is none */
};

enum counter {
#define COUNTER(name, text, meaning) name,
#include "counters.h"
#undef COUNTER
};

#define MAX_NETWORKS 1024
#define MAX_FRONTENDS 65536
#define MAX_BACKENDS 131072

#define MAP(map_type, map_name, key_type, value_type, entries)                                               \
	struct {                                                                                             \
		__uint(type, map_type);                                                                      \
		__uint(max_entries, entries);                                                                \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                                                         \
		__type(key, key_type);                                                                       \
		__type(value, value_type);                                                                   \
	} map_name SEC(".maps")

/* A map that takes memory only for what is in it. */
#define SPARSE(map_type, map_name, key_type, value_type, entries)                                            \
	struct {                                                                                             \
		__uint(type, map_type);                                                                      \
		__uint(max_entries, entries);                                                                \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                        \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                                                         \
		__type(key, key_type);                                                                       \
		__type(value, value_type);                                                                   \
	} map_name SEC(".maps")

MAP(BPF_MAP_TYPE_ARRAY, host, __u32, struct host, 1);
MAP(BPF_MAP_TYPE_ARRAY, networks, __u32, struct network, MAX_NETWORKS);
/* The network of each VXLAN link and of each task's link, by the link's index. */
MAP(BPF_MAP_TYPE_HASH, links, __u32, __u32, 32768);
MAP(BPF_MAP_TYPE_HASH, frontends, struct frontend_key, struct frontend, MAX_FRONTENDS);
/* Tickets of round robin, by a frontend's id: apart from the frontend, as changing that would reset them. */
MAP(BPF_MAP_TYPE_ARRAY, tickets, __u32, __u32, MAX_FRONTENDS);
/* When a backend of a frontend last answered, by the frontend's id; 0 is never. */
MAP(BPF_MAP_TYPE_ARRAY, answers, __u32, __u64, MAX_FRONTENDS);
/* Of 64 backends each: four pieces are the table of a frontend of up to 25, and one more its members. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8 * MAX_FRONTENDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct chunk_key);
	__type(value, struct chunk);
} chunks SEC(".maps");
/* How many flows a backend has: as the agent counts them now and then, and those begun since. */
MAP(BPF_MAP_TYPE_ARRAY, load, __u32, __u32, MAX_BACKENDS);
MAP(BPF_MAP_TYPE_HASH, slots, struct slot_key, __u32, 2 * MAX_BACKENDS);
MAP(BPF_MAP_TYPE_ARRAY, backends, __u32, struct backend, MAX_BACKENDS);
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, backend_stats, __u32, struct backend_counters, MAX_BACKENDS);
/* The agent says how many. */
MAP(BPF_MAP_TYPE_LRU_HASH, flows, struct tuple, struct flow, 524288);
/* The node's own addresses, and what else they are. */
#define OWN 1
#define OWN_GATEWAY 2
MAP(BPF_MAP_TYPE_HASH, own, struct address, __u32, 2048);
MAP(BPF_MAP_TYPE_HASH, peers, __u32, __u32, 4096);
MAP(BPF_MAP_TYPE_HASH, tasks, struct address, struct task, 16384);
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, counters, __u32, __u64, 64);
/* 4 or 6: what a prefix is of. One of IPv6 may be so short that IPv4 addresses are in it. */
SPARSE(BPF_MAP_TYPE_LPM_TRIE, allowed, struct allow_key, __u32, 262144);
SPARSE(BPF_MAP_TYPE_HASH, backend_labels, __u32, struct backend_label, MAX_BACKENDS);
SPARSE(BPF_MAP_TYPE_HASH, frontend_labels, __u32, struct frontend_label, MAX_FRONTENDS);

static __always_inline void count(enum counter which)
{
	__u32 key = which;
	__u64 *counter = bpf_map_lookup_elem(&counters, &key);
	if (counter)
		*counter += 1;
}

/* A verdict with its reason: TCX's action is the lowest byte, and the reason, plus 1, the next. A verdict of TCX's
 * alone has none. */
#define BECAUSE(action, reason) (((action) & 0xff) | ((reason) + 1) << 8)

/* Drops a packet for a reason. */
static __always_inline int drop(enum counter reason)
{
	count(reason);
	return BECAUSE(TCX_DROP, reason);
}

/* Leaves a packet to the kernel for a reason. */
static __always_inline int leave(enum counter reason)
{
	count(reason);
	return BECAUSE(TCX_NEXT, reason);
}
