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

struct error_v6 {
	struct ipv6hdr ip;
	__u8 type, code;
	__u16 check;
	__be32 mtu;
	__u8 about[60];
};

#define ERROR_HEADERS offsetof(struct error, about)
#define ERROR_HEADERS_V6 offsetof(struct error_v6, about)

/* Whether a packet, or one of those that it is to be cut into as it leaves, is larger than `mtu` and may not be
 * fragmented, as none of IPv6 may. One that may be is: by the tunnel, and put together at its other end. */
static __always_inline int is_too_big(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	if (__builtin_expect(skb->len <= mtu + ETH_HLEN, 1))
		return 0;
	__u32 l4 = p->v6 ? L4_OF_V6 : L4;
	__be16 flags = htons(0x4000);
	if (!p->v6 && (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, frag_off), &flags, 2) || !(flags & htons(0x4000))))
		return 0;
	if (!skb->gso_size)
		return 1;
	__u32 headers = l4 - ETH_HLEN + 8;
	if (p->tuple.proto == IPPROTO_TCP) {
		__u8 offset;
		if (bpf_skb_load_bytes(skb, l4 + 12, &offset, 1))
			return 0;
		headers = l4 - ETH_HLEN + (offset >> 4) * 4;
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
static __always_inline void foresee(__u16 *of, const void *ends, __u32 size, __u8 proto, const __u8 *segment, __u32 length)
{
	__u16 check = *(__u16 *)(segment + (proto == IPPROTO_TCP ? 16 : 6));
	__u32 sum = (__u16)~folded(bpf_csum_diff(0, 0, (void *)ends, size, 0));
	__u16 pseudo = ~folded(sum + htons(proto) + htons(length));
	if (check != pseudo)
		return;
	__u16 without = folded(bpf_csum_diff(0, 0, (void *)segment, 20, 0));
	*of = folded((__u32)(__u16)~*of + without + (__u16)~pseudo);
}

/* Puts `headers` before the first `length` bytes of a packet, behind its Ethernet header, whose addresses change
 * places, and sends it back. */
static __always_inline int answer(struct __sk_buff *skb, void *headers, __u32 size, __u32 length)
{
	__u8 turned[12];
	if (bpf_skb_load_bytes(skb, 6, turned, 6) || bpf_skb_load_bytes(skb, 0, turned + 6, 6))
		return drop(DROP_FAILED);
	if (bpf_skb_change_tail(skb, ETH_HLEN + length, 0) || bpf_skb_adjust_room(skb, size, BPF_ADJ_ROOM_MAC, 0))
		return drop(DROP_FAILED);
	if (bpf_skb_store_bytes(skb, 0, turned, 12, 0) || bpf_skb_store_bytes(skb, ETH_HLEN, headers, size, 0))
		return drop(DROP_FAILED);
	count(TOO_BIG);
	return bpf_redirect(skb->ifindex, 0);
}

/* Answers a packet that is too big, by the link that it came by. */
static __noinline int tell_too_big_v4(struct __sk_buff *skb, __u32 mtu, __be32 from)
{
	struct error e = {.ip = {.ihl = 5, .version = 4, .ttl = 64, .protocol = IPPROTO_ICMP}, .type = 3, .code = 4};
	if (bpf_skb_load_bytes(skb, ETH_HLEN, e.about, 28))
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
	foresee(&e.check, &about->saddr, 8, about->protocol, e.about + 20, skb->len - L4);
	return answer(skb, &e, ERROR_HEADERS, length);
}

/* The same for IPv6 (RFC 4443, section 3.2). */
static __noinline int tell_too_big_v6(struct __sk_buff *skb, __u32 mtu, const struct address *from)
{
	struct error_v6 e = {.ip = {.version = 6, .nexthdr = IPPROTO_ICMPV6, .hop_limit = 64}, .type = ICMPV6_TOO_BIG};
	if (bpf_skb_load_bytes(skb, ETH_HLEN, e.about, 48))
		return drop(DROP_FAILED);
	const struct ipv6hdr *about = (const struct ipv6hdr *)e.about;
	__u32 length = 48;
	if (about->nexthdr == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, e.about, 60))
			return drop(DROP_FAILED);
		length = 60;
	}
	e.mtu = htonl(mtu);
	e.ip.payload_len = htons(8 + length);
	e.ip.saddr = *from;
	e.ip.daddr = about->saddr;
	__u32 ends = (__u16)~folded(bpf_csum_diff(0, 0, (void *)&e.ip.saddr, 32, 0));
	__u32 sum = (__u16)~folded(bpf_csum_diff(0, 0, (void *)&e.type, sizeof(e) - sizeof(e.ip), 0));
	e.check = folded(ends + sum + htons(8 + length) + htons(IPPROTO_ICMPV6));
	foresee(&e.check, &about->saddr, 32, about->nexthdr, e.about + 40, skb->len - L4_OF_V6);
	return answer(skb, &e, ERROR_HEADERS_V6, length);
}

static __always_inline int tell_too_big(struct __sk_buff *skb, const struct packet *p, __u32 mtu, const struct address *from)
{
	return p->v6 ? tell_too_big_v6(skb, mtu, from) : tell_too_big_v4(skb, mtu, from->word[3]);
}
