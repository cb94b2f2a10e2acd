/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that do not fit the tunnel. The kernel's own check of that is on ways that redirected packets do not take. */
#pragma once
#include "packet.h"

/* What an ICMP error adds to the start of the packet that it is about (RFC 792, RFC 1191). */
struct error {
	struct iphdr ip;
	__u8 type, code;
	__u16 check, unused;
	__be16 mtu;
	/* Its IP header and ports; of TCP all that the kernel does not let be cut off. */
	__u8 about[40];
};

#define ERROR_HEADERS offsetof(struct error, about)

/* Whether a packet, or one of those that it is to be cut into as it leaves, is larger than `mtu` and may not be
 * fragmented. One that may be is: by the tunnel, and put together at its other end. */
static __always_inline int is_too_big(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	if (__builtin_expect(skb->len <= mtu + ETH_HLEN, 1))
		return 0;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + L4 + 8 > end)
		return 0;
	struct iphdr *ip = data + ETH_HLEN;
	if (!(ip->frag_off & htons(0x4000)))
		return 0;
	if (!skb->gso_size)
		return 1;
	__u32 headers = 28;
	if (p->tuple.proto == IPPROTO_TCP) {
		if (data + L4 + 20 > end)
			return 0;
		headers = 20 + (*(__u8 *)(data + L4 + 12) >> 4) * 4;
	}
	return skb->gso_size + headers > mtu;
}

static __always_inline __u16 folded(__u32 sum)
{
	return checksum(0xffff, sum);
}

/* A packet whose checksum a card is still to make has the sum of its pseudo-header there. What leaves by a card that
 * makes none is finished by the kernel, and then the sum of all from the ports on is minus that: so it is to count in
 * the checksum of an error that carries it. */
static __always_inline void foresee(struct error *e, __u32 length)
{
	const struct iphdr *about = (const struct iphdr *)e->about;
	__u16 check = *(__u16 *)(e->about + 20 + (about->protocol == IPPROTO_TCP ? 16 : 6));
	__u32 ends = (__u16)~folded(bpf_csum_diff(0, 0, (void *)&about->saddr, 8, 0));
	__u16 pseudo = ~folded(ends + htons(about->protocol) + htons(length));
	if (check != pseudo)
		return;
	__u16 without = folded(bpf_csum_diff(0, 0, (void *)(e->about + 20), 20, 0));
	e->check = folded((__u32)(__u16)~e->check + without + (__u16)~pseudo);
}

/* Answers a packet that is too big, by the link that it came by. */
static __noinline int tell_too_big(struct __sk_buff *skb, __u32 mtu, __be32 from)
{
	struct error e = {.ip = {.ihl = 5, .version = 4, .ttl = 64, .protocol = IPPROTO_ICMP}, .type = 3, .code = 4};
	__u8 turned[12];
	if (bpf_skb_load_bytes(skb, ETH_HLEN, e.about, 28) || bpf_skb_load_bytes(skb, 6, turned, 6) || bpf_skb_load_bytes(skb, 0, turned + 6, 6))
		return drop(DROP_FAILED);
	const struct iphdr *about = (const struct iphdr *)e.about;
	__u32 length = 28;
	if (about->protocol == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, e.about, 40))
			return drop(DROP_FAILED);
		length = 40;
	}
	e.mtu = htons(mtu);
	e.ip.tot_len = htons(ERROR_HEADERS + length);
	e.ip.saddr = from;
	e.ip.daddr = about->saddr;
	e.ip.check = folded(bpf_csum_diff(0, 0, (void *)&e.ip, sizeof(e.ip), 0));
	/* What is not copied is zero, and adds nothing. */
	e.check = folded(bpf_csum_diff(0, 0, (void *)&e.type, sizeof(e) - sizeof(e.ip), 0));
	foresee(&e, skb->len - L4);
	if (bpf_skb_change_tail(skb, ETH_HLEN + length, 0) || bpf_skb_adjust_room(skb, ERROR_HEADERS, BPF_ADJ_ROOM_MAC, 0))
		return drop(DROP_FAILED);
	if (bpf_skb_store_bytes(skb, 0, turned, 12, 0) || bpf_skb_store_bytes(skb, ETH_HLEN, &e, ERROR_HEADERS, 0))
		return drop(DROP_FAILED);
	count(TOO_BIG);
	return bpf_redirect(skb->ifindex, 0);
}
