/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reading packets, and changing them. */
#pragma once
#include "fragments.h"

#define ETH_HLEN 14
/* Where things are in a packet of IPv4, and of IPv6. */
#define L4 (ETH_HLEN + 20)
#define L4_OF_V6 (ETH_HLEN + 40)
/* An ICMP error carries the start of the packet that it is about: its IP header, and behind it the ports. */
#define INNER_IP (L4 + 8)
#define INNER_L4 (INNER_IP + 20)
#define INNER_IPV6 (L4_OF_V6 + 8)
#define INNER_L4_OF_V6 (INNER_IPV6 + 40)

/* Every link takes IPv6 packets of this size (RFC 8200, section 5). */
#define IPV6_MIN_MTU 1280

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

/* RFC 792. */
#define ICMP_UNREACHABLE 3
#define ICMP_TOO_BIG 4
/* RFC 4443. */
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_TOO_BIG 2

/* The rest of a packet in fragments, whose first one was of a flow, is of this flow too. */
enum what { NOT_OURS, SEGMENT, ICMP_ERROR, FRAGMENT, OPTIONS, REST };

struct packet {
	/* The flow's. Of an ICMP error it is that of a packet which goes the error's own way. */
	struct tuple tuple;
	__u8 what;
	__u8 tcp; /* flags */
	__u8 v6;
	__u8 unreachable; /* an ICMP error that says so, and not because of the packet's size */
	__u32 ack;  /* TCP: what it acknowledges, network order */
	__u32 data; /* bytes of it, without headers */
	__be16 id;  /* of a first fragment */
	__u8 first; /* it is one: others follow */
	__u8 pad;
};

/* Whether it says whose flow it is of. */
static __always_inline int is_of_flow(const struct packet *p)
{
	return p->what == SEGMENT || p->what == ICMP_ERROR || p->what == REST;
}

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
	p->unreachable = type == ICMP_UNREACHABLE && *(__u8 *)(data + L4 + 1) != ICMP_TOO_BIG;
	p->what = ICMP_ERROR;
}

/* Neighbours and routers speak by addresses of the link and of groups. In the first ones of all there are the
 * unspecified one, the loopback, and IPv4 addresses, which in our maps are those of IPv4 packets. */
static __always_inline int is_special(const struct address *ip)
{
	return (ip->word[0] & htonl(0xffc00000)) == htonl(0xfe800000) || (ip->word[0] & htonl(0xff000000)) == htonl(0xff000000) || !(ip->word[0] | ip->word[1]);
}

static __always_inline void parse_icmpv6(struct __sk_buff *skb, struct packet *p)
{
	if (!reach(skb, INNER_L4_OF_V6 + 8))
		return;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + INNER_L4_OF_V6 + 8 > end)
		return;
	__u8 type = *(__u8 *)(data + L4_OF_V6);
	struct ipv6hdr *inner = data + INNER_IPV6;
	/* Unreachable, too big, time exceeded, parameter problem (RFC 4443). */
	if (type < 1 || type > 4 || is_special(&inner->saddr) || is_special(&inner->daddr))
		return;
	if (inner->nexthdr != IPPROTO_TCP && inner->nexthdr != IPPROTO_UDP)
		return;
	__be16 *ports = data + INNER_L4_OF_V6;
	p->tuple = (struct tuple){.saddr = inner->daddr, .daddr = inner->saddr, .sport = ports[1], .dport = ports[0], .proto = inner->nexthdr};
	p->unreachable = type == ICMPV6_UNREACHABLE;
	p->what = ICMP_ERROR;
}

/* Reads what stands in a segment besides the ports; `length` is the packet's. */
static __always_inline void parse_segment(struct __sk_buff *skb, struct packet *p, __u32 l4, __u32 length)
{
	__u32 headers = l4 - ETH_HLEN + 8;
	if (p->tuple.proto == IPPROTO_TCP) {
		if (!reach(skb, l4 + 20))
			return;
		void *data = (void *)(long)skb->data;
		if (data + l4 + 20 > (void *)(long)skb->data_end)
			return;
		p->tcp = *(__u8 *)(data + l4 + 13);
		p->ack = *(__u32 *)(data + l4 + 8);
		headers = l4 - ETH_HLEN + (*(__u8 *)(data + l4 + 12) >> 4) * 4;
	}
	p->data = length > headers ? length - headers : 0;
	p->what = SEGMENT;
}

static __always_inline void parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	p->v6 = 1;
	if (!reach(skb, L4_OF_V6 + 8))
		return;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + L4_OF_V6 + 8 > end)
		return;
	struct ipv6hdr *ip = data + ETH_HLEN;
	if (is_special(&ip->saddr) || is_special(&ip->daddr))
		return;
	switch (ip->nexthdr) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		break;
	case IPPROTO_ICMPV6:
		parse_icmpv6(skb, p);
		return;
	case 44:
		p->what = FRAGMENT;
		return;
	/* Hop-by-hop options, routing, authentication, destination options, mobility. */
	case 0:
	case 43:
	case 51:
	case 60:
	case 135:
		p->what = OPTIONS;
		return;
	default:
		return;
	}
	__be16 *ports = data + L4_OF_V6;
	__u32 length = ip->payload_len ? 40 + ntohs(ip->payload_len) : skb->len - ETH_HLEN;
	p->tuple = (struct tuple){.saddr = ip->saddr, .daddr = ip->daddr, .sport = ports[0], .dport = ports[1], .proto = ip->nexthdr};
	parse_segment(skb, p, L4_OF_V6, length);
}

/* Reads a fragment that is not the first. */
static __noinline int parse_rest(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr ip;
	p->what = FRAGMENT;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return 0;
	struct fragmented key = fragmented(&ip);
	struct ports *ports = bpf_map_lookup_elem(&fragments, &key);
	if (!ports)
		return 0;
	p->tuple = (struct tuple){.saddr = mapped(ip.saddr), .daddr = mapped(ip.daddr), .sport = ports->sport, .dport = ports->dport, .proto = ip.protocol};
	p->data = ntohs(ip.tot_len) - 20;
	p->what = REST;
	return 0;
}

/* Has the other fragments of a packet follow the first. */
static __noinline int remember(const struct packet *p)
{
	struct fragmented key = {.saddr = p->tuple.saddr.word[3], .daddr = p->tuple.daddr.word[3], .id = p->id, .proto = p->tuple.proto};
	struct ports ports = {p->tuple.sport, p->tuple.dport};
	bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY);
	return 0;
}

static __always_inline void parse(struct __sk_buff *skb, struct packet *p)
{
	*p = (struct packet){};
	/* The kernel takes a VLAN's tag off before: the packet is for the VLAN's device, where the program sees it again. */
	if (skb->vlan_present)
		return;
	if (skb->protocol == htons(ETH_P_IPV6)) {
		parse_ipv6(skb, p);
		return;
	}
	if (skb->protocol != htons(ETH_P_IP))
		return;
	if (!reach(skb, L4 + 8)) {
		/* As short a packet can only be the last of fragments. */
		__be16 part;
		if (!bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, frag_off), &part, sizeof(part)) && part & FRAGMENT_OFFSET)
			parse_rest(skb, p);
		return;
	}
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + L4 + 8 > end)
		return;
	struct iphdr *ip = data + ETH_HLEN;
	if (ip->ihl != 5) {
		p->what = OPTIONS;
		return;
	}
	if (ip->frag_off & (MORE_FRAGMENTS | FRAGMENT_OFFSET)) {
		if (ip->frag_off & FRAGMENT_OFFSET) {
			parse_rest(skb, p);
			return;
		}
		p->first = 1;
		p->id = ip->id;
	}
	__u8 proto = ip->protocol;
	/* The frame may be padded, or so large that the header has no room for its length. */
	__u32 length = ip->tot_len ? ntohs(ip->tot_len) : skb->len - ETH_HLEN;
	if (proto == IPPROTO_ICMP) {
		parse_icmp(skb, p);
		return;
	}
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return;
	__be16 *ports = data + L4;
	p->tuple = (struct tuple){.saddr = mapped(ip->saddr), .daddr = mapped(ip->daddr), .sport = ports[0], .dport = ports[1], .proto = proto};
	parse_segment(skb, p, L4, length);
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

/* Gives one end of a segment its new address and port. The header of IPv4 is edited in place. The checksum above it
 * is not: only the helper knows what it is made of in a packet that a card is still to finish. */
static __always_inline int rewrite_segment(struct __sk_buff *skb, const struct packet *p, const struct flow *f, enum end end)
{
	void *data = (void *)(long)skb->data, *stop = (void *)(long)skb->data_end;
	__u32 at = p->tuple.proto == IPPROTO_TCP ? 16 : 6;
	/* A UDP checksum of 0 says that there is none. */
	__u64 flags = p->tuple.proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	if (p->v6) {
		if (data + L4_OF_V6 + 8 > stop)
			return -1;
		struct ipv6hdr *ip = data + ETH_HLEN;
		__be16 *ports = data + L4_OF_V6;
		*(end == DESTINATION ? &ip->daddr : &ip->saddr) = f->ip;
		ports[end] = f->port;
		at += L4_OF_V6;
		/* There is no checksum of the header to make up for the address in the sum that a card may have made of the
		 * whole packet. Kernels before 6.16 have no word for that. */
		if (bpf_l4_csum_replace(skb, at, 0, f->ip_delta, flags | BPF_F_PSEUDO_HDR | BPF_F_IPV6) &&
		    bpf_l4_csum_replace(skb, at, 0, f->ip_delta, flags | BPF_F_PSEUDO_HDR))
			return -1;
	} else {
		if (data + L4 + 8 > stop)
			return -1;
		struct iphdr *ip = data + ETH_HLEN;
		__be16 *ports = data + L4;
		*(end == DESTINATION ? &ip->daddr : &ip->saddr) = f->ip.word[3];
		ports[end] = f->port;
		ip->check = checksum(ip->check, f->ip_delta);
		at += L4;
		if (bpf_l4_csum_replace(skb, at, 0, f->ip_delta, flags | BPF_F_PSEUDO_HDR))
			return -1;
	}
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

/* The same for IPv6, where the ICMP checksum is one of both addresses, too, and the inner header has none. */
static __always_inline int rewrite_icmpv6(struct __sk_buff *skb, const struct packet *p, const struct flow *f, enum end end)
{
	void *data = (void *)(long)skb->data, *stop = (void *)(long)skb->data_end;
	if (data + INNER_L4_OF_V6 + 8 > stop)
		return -1;
	struct ipv6hdr *ip = data + ETH_HLEN, *inner = data + INNER_IPV6;
	__u16 *check = data + L4_OF_V6 + 2;
	__be16 *ports = data + INNER_L4_OF_V6;
	if (end == DESTINATION) {
		ip->daddr = f->ip;
		*check = checksum(*check, f->ip_delta);
		inner->saddr = f->ip;
		ports[0] = f->port;
	} else {
		if (is_same(&ip->saddr, &p->tuple.saddr)) {
			ip->saddr = f->ip;
			*check = checksum(*check, f->ip_delta);
		}
		inner->daddr = f->ip;
		ports[1] = f->port;
	}
	*check = checksum(*check, f->ip_delta);
	*check = checksum(*check, f->port_delta);
	count(ICMP_TRANSLATED);
	return 0;
}

/* The same for what has no ports. */
static __always_inline int rewrite_rest(struct __sk_buff *skb, const struct flow *f, enum end end)
{
	void *data = (void *)(long)skb->data, *stop = (void *)(long)skb->data_end;
	if (data + L4 > stop)
		return -1;
	struct iphdr *ip = data + ETH_HLEN;
	*(end == DESTINATION ? &ip->daddr : &ip->saddr) = f->ip.word[3];
	ip->check = checksum(ip->check, f->ip_delta);
	return 0;
}

static __always_inline int rewrite(struct __sk_buff *skb, const struct packet *p, const struct flow *f, enum end end)
{
	if (p->what == REST)
		return rewrite_rest(skb, f, end);
	if (p->what != ICMP_ERROR)
		return rewrite_segment(skb, p, f, end);
	return p->v6 ? rewrite_icmpv6(skb, p, f, end) : rewrite_icmp(skb, p, f, end);
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
static __noinline int clamp(struct __sk_buff *skb, __u32 l4, __u32 mss)
{
	struct options o = {};
	__u8 offset;
	if (bpf_skb_load_bytes(skb, l4 + 12, &offset, 1))
		return 0;
	__u32 length = (offset >> 4) * 4 - 20;
	if (length < 4 || length > 40 || bpf_skb_load_bytes(skb, l4 + 20, o.bytes, length))
		return 0;
	o.length = length;
	bpf_loop(sizeof(o.bytes), next_option, &o, 0);
	if (o.mss <= mss)
		return 0;
	__be16 from = htons(o.mss), to = htons(mss);
	/* At an odd place the two bytes lie across the words of the checksum. */
	__u32 delta = o.at & 1 ? port_delta(o.mss, mss) : port_delta(from, to);
	bpf_l4_csum_replace(skb, l4 + 16, 0, delta, 0);
	bpf_skb_store_bytes(skb, l4 + 20 + o.at + 2, &to, 2, 0);
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
	if ((ip->word[3] & network->mask) != network->subnet)
		return 0;
	if (!ip->word[0])
		return 1;
	return ip->word[0] == network->prefix[0] && ip->word[1] == network->prefix[1] && ip->word[2] == network->prefix[2];
}

/* The largest packet that goes through a network's tunnel, which the kernel cuts up where it has to. */
static __always_inline __u32 mtu_of(const struct network *network, const struct packet *p)
{
	return p->v6 && network->mtu < IPV6_MIN_MTU ? IPV6_MIN_MTU : network->mtu;
}

/* Whether an address is this node's of IPv4 on the network, which may be outside of the subnet. */
static __always_inline int is_gateway(const struct network *network, const struct address *ip)
{
	return !ip->word[0] && ip->word[3] == network->gateway;
}

/* Lowers the segment size that a SYN or SYN-ACK offers to what fits the tunnel. */
static __always_inline void fit(struct __sk_buff *skb, const struct packet *p, const struct network *network)
{
	if (!(p->tcp & TCP_SYN))
		return;
	__u32 l4 = p->v6 ? L4_OF_V6 : L4;
	clamp(skb, l4, mtu_of(network, p) - (l4 - ETH_HLEN) - 20);
}

/* Says to which node a packet goes, should it be sent by a network's link. */
static __always_inline int wrap(struct __sk_buff *skb, const struct network *network, __u32 node)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = network->vni,
		.remote_ipv4 = node,
		.local_ipv4 = network->underlay,
		.tunnel_ttl = 64,
	};
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX);
}

/* Sends a packet through a network's tunnel. */
static __always_inline int encapsulate(struct __sk_buff *skb, const struct network *network, __u32 node)
{
	if (wrap(skb, network, node))
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
