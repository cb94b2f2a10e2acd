/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reading packets, and changing them. */
#pragma once
#include "layout.h"

#define ETH_HLEN 14
#define L4 (ETH_HLEN + 20)
/* An ICMP error carries the start of the packet that it is about: its IP header, and behind it the ports. */
#define INNER_IP (L4 + 8)
#define INNER_L4 (INNER_IP + 20)

/* Bytes of IPv4 and TCP headers without options. */
#define HEADERS 40

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

/* RFC 792. */
#define ICMP_UNREACHABLE 3
#define ICMP_TOO_BIG 4

enum what { NOT_OURS, SEGMENT, ICMP_ERROR, FRAGMENT, OPTIONS };

struct packet {
	/* The flow's. Of an ICMP error it is that of a packet which goes the error's own way. */
	struct tuple tuple;
	__u8 what;
	__u8 tcp; /* flags */
	__u8 icmp_type, icmp_code;
	__u32 ack;  /* TCP: what it acknowledges, network order */
	__u32 data; /* bytes of it, without headers */
};

static __always_inline int is_syn(const struct packet *p)
{
	return (p->tcp & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline struct tuple reversed(const struct tuple *t)
{
	return (struct tuple){.saddr = t->daddr, .daddr = t->saddr, .sport = t->dport, .dport = t->sport, .proto = t->proto};
}

/* Makes that many bytes readable in place. */
static __always_inline int reach(struct __sk_buff *skb, __u32 bytes)
{
	return (void *)(long)skb->data + bytes <= (void *)(long)skb->data_end || !bpf_skb_pull_data(skb, bytes);
}

static __always_inline void parse_icmp(struct __sk_buff *skb, struct packet *p)
{
	if (!reach(skb, INNER_L4 + 8))
		return;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + INNER_L4 + 8 > end)
		return;
	__u8 type = *(__u8 *)(data + L4);
	struct iphdr *inner = data + INNER_IP;
	/* Unreachable, time exceeded, parameter problem (RFC 792). */
	if ((type != 3 && type != 11 && type != 12) || inner->ihl != 5)
		return;
	if (inner->protocol != IPPROTO_TCP && inner->protocol != IPPROTO_UDP)
		return;
	__be16 *ports = data + INNER_L4;
	p->tuple = (struct tuple){.saddr = mapped(inner->daddr), .daddr = mapped(inner->saddr), .sport = ports[1], .dport = ports[0], .proto = inner->protocol};
	p->icmp_type = type;
	p->icmp_code = *(__u8 *)(data + L4 + 1);
	p->what = ICMP_ERROR;
}

static __always_inline void parse(struct __sk_buff *skb, struct packet *p)
{
	*p = (struct packet){};
	/* The kernel takes a VLAN's tag off before: the packet is for the VLAN's device, where the program sees it again. */
	if (skb->protocol != htons(0x0800) || skb->vlan_present || !reach(skb, L4 + 8))
		return;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + L4 + 8 > end)
		return;
	struct iphdr *ip = data + ETH_HLEN;
	if (ip->ihl != 5) {
		p->what = OPTIONS;
		return;
	}
	if (ip->frag_off & htons(0x3fff)) {
		p->what = FRAGMENT;
		return;
	}
	__u8 proto = ip->protocol;
	/* The frame may be padded, or so large that the header has no room for its length. */
	__u32 length = ip->tot_len ? ntohs(ip->tot_len) : skb->len - ETH_HLEN, headers = 28;
	if (proto == IPPROTO_ICMP) {
		parse_icmp(skb, p);
		return;
	}
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return;
	__be16 *ports = data + L4;
	p->tuple = (struct tuple){.saddr = mapped(ip->saddr), .daddr = mapped(ip->daddr), .sport = ports[0], .dport = ports[1], .proto = proto};
	if (proto == IPPROTO_TCP) {
		if (data + L4 + 20 > end) {
			if (!reach(skb, L4 + 20))
				return;
			data = (void *)(long)skb->data;
			end = (void *)(long)skb->data_end;
			if (data + L4 + 20 > end)
				return;
		}
		p->tcp = *(__u8 *)(data + L4 + 13);
		p->ack = *(__u32 *)(data + L4 + 8);
		headers = 20 + (*(__u8 *)(data + L4 + 12) >> 4) * 4;
	}
	p->data = length > headers ? length - headers : 0;
	p->what = SEGMENT;
}

/* RFC 1624: a checksum after a change of the data below it. */
static __always_inline __u16 checksum(__u16 old, __u32 delta)
{
	__u32 sum = (__u16)~old + (delta & 0xffff) + (delta >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u32 ip_delta(const struct address *from, const struct address *to)
{
	return bpf_csum_diff((void *)from, sizeof(*from), (void *)to, sizeof(*to), 0);
}

static __always_inline __u32 port_delta(__be16 from, __be16 to)
{
	__be32 words[] = {from, to};
	return bpf_csum_diff(words, 4, words + 1, 4, 0);
}

enum end { SOURCE, DESTINATION };

/* Gives one end of a segment its new address and port. The IP header is edited in place. The checksum above it
 * is not: only the helper knows what it is made of in a packet that a card is still to finish. */
static __always_inline int rewrite_segment(struct __sk_buff *skb, const struct packet *p, const struct flow *f, enum end end)
{
	void *data = (void *)(long)skb->data, *stop = (void *)(long)skb->data_end;
	if (data + L4 + 8 > stop)
		return -1;
	struct iphdr *ip = data + ETH_HLEN;
	__be16 *ports = data + L4;
	if (end == DESTINATION) {
		ip->daddr = f->ip.word[3];
		ports[1] = f->port;
	} else {
		ip->saddr = f->ip.word[3];
		ports[0] = f->port;
	}
	ip->check = checksum(ip->check, f->ip_delta);
	__u32 at = L4 + (p->tuple.proto == IPPROTO_TCP ? 16 : 6);
	/* A UDP checksum of 0 says that there is none. */
	__u64 flags = p->tuple.proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	if (bpf_l4_csum_replace(skb, at, 0, f->ip_delta, flags | BPF_F_PSEUDO_HDR))
		return -1;
	if (f->port_delta && bpf_l4_csum_replace(skb, at, 0, f->port_delta, flags))
		return -1;
	return 0;
}

/* The same for an ICMP error, outside and inside: inside, the end is the other one. In the ICMP checksum the
 * inner address and the inner IP checksum cancel each other out. The inner TCP or UDP checksum stays as it is: no
 * one can check it, as the data is cut off. */
static __always_inline int rewrite_icmp(struct __sk_buff *skb, const struct packet *p, const struct flow *f, enum end end)
{
	void *data = (void *)(long)skb->data, *stop = (void *)(long)skb->data_end;
	if (data + INNER_L4 + 8 > stop)
		return -1;
	struct iphdr *ip = data + ETH_HLEN, *inner = data + INNER_IP;
	__u16 *check = data + L4 + 2;
	__be16 *ports = data + INNER_L4;
	if (end == DESTINATION) {
		ip->daddr = f->ip.word[3];
		ip->check = checksum(ip->check, f->ip_delta);
		inner->saddr = f->ip.word[3];
		ports[0] = f->port;
	} else {
		/* A router on the way may be the one that complains. */
		if (ip->saddr == p->tuple.saddr.word[3]) {
			ip->saddr = f->ip.word[3];
			ip->check = checksum(ip->check, f->ip_delta);
		}
		inner->daddr = f->ip.word[3];
		ports[1] = f->port;
	}
	inner->check = checksum(inner->check, f->ip_delta);
	*check = checksum(*check, f->port_delta);
	count(ICMP_TRANSLATED);
	return 0;
}

static __always_inline int rewrite(struct __sk_buff *skb, const struct packet *p, const struct flow *f, enum end end)
{
	return p->what == ICMP_ERROR ? rewrite_icmp(skb, p, f, end) : rewrite_segment(skb, p, f, end);
}

/* The options of a SYN, and how far they have been read. */
struct options {
	__u8 bytes[40];
	__u32 at, length;
	__u16 mss; /* 0 until it is found; then `at` is where */
};

/* Looks at one option (RFC 9293, section 3.2); 1 ends the search. */
static long next_option(__u32 index, struct options *o)
{
	(void)index;
	__u32 at = o->at;
	if (at > 36 || at + 4 > o->length)
		return 1;
	__u8 kind = o->bytes[at], size = o->bytes[at + 1];
	if (kind == 2 && size == 4) {
		o->mss = o->bytes[at + 2] << 8 | o->bytes[at + 3];
		return 1;
	}
	if (kind == 0 || (kind != 1 && size < 2))
		return 1;
	o->at = at + (kind == 1 ? 1 : size);
	return 0;
}

/* Lowers the MSS option of a SYN or SYN-ACK, wherever it stands, to `mss`. */
static __noinline int clamp(struct __sk_buff *skb, __u32 mss)
{
	struct options o = {};
	__u8 offset;
	if (bpf_skb_load_bytes(skb, L4 + 12, &offset, 1))
		return 0;
	__u32 length = (offset >> 4) * 4 - 20;
	if (length < 4 || length > 40 || bpf_skb_load_bytes(skb, L4 + 20, o.bytes, length))
		return 0;
	o.length = length;
	bpf_loop(sizeof(o.bytes), next_option, &o, 0);
	if (o.mss <= mss)
		return 0;
	__be16 from = htons(o.mss), to = htons(mss);
	/* At an odd place the two bytes lie across the words of the checksum. */
	__u32 delta = o.at & 1 ? port_delta(o.mss, mss) : port_delta(from, to);
	bpf_l4_csum_replace(skb, L4 + 16, 0, delta, 0);
	bpf_skb_store_bytes(skb, L4 + 20 + o.at + 2, &to, 2, 0);
	count(MSS_CLAMPED);
	return 0;
}

/* The network that a link belongs to; 0 is none. */
static __always_inline __u32 network_of(__u32 ifindex)
{
	__u32 *network = bpf_map_lookup_elem(&links, &ifindex);
	return network ? *network : 0;
}

static __always_inline int in_subnet(const struct network *network, const struct address *ip)
{
	return (ip->word[3] & network->mask) == network->subnet;
}

/* Whether an address is this node's on the network, which may be outside of the subnet. */
static __always_inline int is_gateway(const struct network *network, const struct address *ip)
{
	return ip->word[3] == network->gateway;
}

/* Lowers the segment size that a SYN or SYN-ACK offers to what fits the tunnel. */
static __always_inline void fit(struct __sk_buff *skb, const struct packet *p, const struct network *network)
{
	if (p->tcp & TCP_SYN)
		clamp(skb, network->mtu - HEADERS);
}

/* Sends a packet through a network's tunnel. */
static __always_inline int encapsulate(struct __sk_buff *skb, const struct network *network, __u32 node)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = network->vni,
		.remote_ipv4 = node,
		.local_ipv4 = network->underlay,
		.tunnel_ttl = 64,
	};
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX))
		return drop(DROP_FAILED);
	return bpf_redirect(network->ifindex, 0);
}

/* Hands a packet to a task of this node. */
static __always_inline int hand_over(struct __sk_buff *skb, __u32 ifindex, const __u8 macs[12])
{
	void *data = (void *)(long)skb->data;
	if (data + ETH_HLEN > (void *)(long)skb->data_end)
		return drop(DROP_FAILED);
	__builtin_memcpy(data, macs, 12);
	return bpf_redirect_peer(ifindex, 0);
}
