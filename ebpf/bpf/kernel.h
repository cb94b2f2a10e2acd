/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the programs need of the kernel's headers (include/uapi/linux/bpf.h and others), so that neither they
 * nor libbpf have to be installed. */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define offsetof(type, member) __builtin_offsetof(type, member)

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define htons(x) ((__u16)__builtin_bswap16(x))
#define htonl(x) ((__u32)__builtin_bswap32(x))
#else
#define htons(x) (x)
#define htonl(x) (x)
#endif
#define ntohs htons

enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_ARRAY = 6, BPF_MAP_TYPE_LRU_HASH = 9, BPF_MAP_TYPE_LPM_TRIE = 11, BPF_MAP_TYPE_RINGBUF = 27 };
enum { LIBBPF_PIN_BY_NAME = 1 };
enum { BPF_F_NO_PREALLOC = 1 };
enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
enum { TCX_NEXT = -1, TCX_PASS = 0, TCX_DROP = 2, TCX_REDIRECT = 7 };
enum { BPF_F_PSEUDO_HDR = 0x10, BPF_F_MARK_MANGLED_0 = 0x20, BPF_F_IPV6 = 0x80 };
enum { BPF_F_ZERO_CSUM_TX = 2 };
enum { BPF_F_INGRESS = 1 };
enum { BPF_FIB_LOOKUP_SKIP_NEIGH = 4 };
enum { AF_INET = 2, AF_INET6 = 10 };
enum { LOOPBACK_IFINDEX = 1 };
enum { PACKET_HOST = 0 };
enum { BPF_ADJ_ROOM_MAC = 1 };
enum { BPF_F_CURRENT_NETNS = -1 };
enum { IPPROTO_ICMP = 1, IPPROTO_TCP = 6, IPPROTO_UDP = 17, IPPROTO_ICMPV6 = 58 };
enum { ETH_P_IP = 0x0800, ETH_P_IPV6 = 0x86dd };
enum { BPF_TCP_LISTEN = 10 };

/* An IPv6 address, or in the maps an IPv4 one mapped into these (RFC 4291, section 2.5.5.2). All zero is none. */
struct address {
	__be32 word[4];
};

struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority;
	__u32 ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end, napi_id;
	__u32 family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port, data_meta;
	__u64 flow_keys, tstamp;
	__u32 wire_len, gso_segs;
	__u64 sk;
	__u32 gso_size;
};

struct bpf_sock {
	__u32 bound_dev_if, family, type, protocol, mark, priority, src_ip4, src_ip6[4], src_port;
	__be16 dst_port;
	__u16 zero;
	__u32 dst_ip4, dst_ip6[4], state;
	__s32 rx_queue_mapping;
};

struct bpf_sock_tuple {
	union {
		struct {
			__be32 saddr, daddr;
			__be16 sport, dport;
		} ipv4;
		struct {
			struct address saddr, daddr;
			__be16 sport, dport;
		} ipv6;
	};
};

struct bpf_tunnel_key {
	__u32 tunnel_id;
	union {
		__u32 remote_ipv4;
		__u32 remote_ipv6[4];
	};
	__u8 tunnel_tos, tunnel_ttl;
	__u16 tunnel_ext;
	__u32 tunnel_label;
	union {
		__u32 local_ipv4;
		__u32 local_ipv6[4];
	};
};

struct bpf_fib_lookup {
	__u8 family, l4_protocol;
	__be16 sport, dport;
	__u16 tot_len;
	__u32 ifindex, tos;
	struct address src, dst; /* of IPv4 the first word */
	__u32 tbid;
	__u8 macs[12];
};

struct ipv6hdr {
	__u8 priority : 4, version : 4;
	__u8 flow_lbl[3];
	__be16 payload_len;
	__u8 nexthdr, hop_limit;
	struct address saddr, daddr;
};

struct iphdr {
	__u8 ihl : 4, version : 4;
	__u8 tos;
	__be16 tot_len, id, frag_off;
	__u8 ttl, protocol;
	__u16 check;
	__be32 saddr, daddr;
};

#define HELPER(id, ret, name, ...) static ret (*const name)(__VA_ARGS__) = (void *)(id)
HELPER(1, void *, bpf_map_lookup_elem, void *, const void *);
HELPER(2, long, bpf_map_update_elem, void *, const void *, const void *, __u64);
HELPER(3, long, bpf_map_delete_elem, void *, const void *);
HELPER(5, __u64, bpf_ktime_get_ns, void);
HELPER(8, __u32, bpf_get_smp_processor_id, void);
HELPER(9, long, bpf_skb_store_bytes, struct __sk_buff *, __u32, const void *, __u32, __u64);
HELPER(11, long, bpf_l4_csum_replace, struct __sk_buff *, __u32, __u64, __u64, __u64);
HELPER(13, long, bpf_clone_redirect, struct __sk_buff *, __u32, __u64);
HELPER(20, long, bpf_skb_get_tunnel_key, struct __sk_buff *, struct bpf_tunnel_key *, __u32, __u64);
HELPER(21, long, bpf_skb_set_tunnel_key, struct __sk_buff *, struct bpf_tunnel_key *, __u32, __u64);
HELPER(23, long, bpf_redirect, __u32, __u64);
HELPER(26, long, bpf_skb_load_bytes, const void *, __u32, void *, __u32);
HELPER(28, __s64, bpf_csum_diff, __be32 *, __u32, __be32 *, __u32, __u32);
HELPER(32, long, bpf_skb_change_type, struct __sk_buff *, __u32);
HELPER(38, long, bpf_skb_change_tail, struct __sk_buff *, __u32, __u64);
HELPER(39, long, bpf_skb_pull_data, struct __sk_buff *, __u32);
HELPER(50, long, bpf_skb_adjust_room, struct __sk_buff *, __s32, __u32, __u64);
HELPER(69, long, bpf_fib_lookup, void *, struct bpf_fib_lookup *, int, __u32);
HELPER(86, long, bpf_sk_release, void *);
HELPER(99, struct bpf_sock *, bpf_skc_lookup_tcp, void *, struct bpf_sock_tuple *, __u32, __u64, __u64);
HELPER(130, long, bpf_ringbuf_output, void *, void *, __u64, __u64);
HELPER(152, long, bpf_redirect_neigh, __u32, void *, int, __u64);
HELPER(155, long, bpf_redirect_peer, __u32, __u64);
HELPER(160, __u64, bpf_ktime_get_coarse_ns, void);
HELPER(181, long, bpf_loop, __u32, void *, void *, __u64);
