/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets of IPv4 that come in fragments. Only the first one tells the ports: what they were is kept for the others,
 * which follow it. One that comes before its first is not helped: its packet is sent again by who misses it. */
#pragma once
#include "layout.h"

/* What all fragments of a packet have in common (RFC 791, section 3.2). */
struct fragmented {
	__be32 saddr, daddr;
	__be16 id;
	__u8 proto, pad;
};

struct ports {
	__be16 sport, dport;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fragmented);
	__type(value, struct ports);
} fragments SEC(".maps");

#define MORE_FRAGMENTS htons(0x2000)
#define FRAGMENT_OFFSET htons(0x1fff)

static __always_inline struct fragmented fragmented(const struct iphdr *ip)
{
	return (struct fragmented){.saddr = ip->saddr, .daddr = ip->daddr, .id = ip->id, .proto = ip->protocol};
}
