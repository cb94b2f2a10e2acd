/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the programs on sockets need of the kernel's headers, and the maps that only they use. */
#pragma once
#include "layout.h"

enum { SOCK_STREAM = 1, SOCK_DGRAM = 2 };
/* The only verdict of these programs: whether the call is allowed is not theirs to say. */
enum { ALLOW = 1 };

struct bpf_sock_addr {
	__u32 user_family;
	__be32 user_ip4, user_ip6[4];
	__u32 user_port; /* the lower half, in network order */
	__u32 family, type, protocol;
	__be32 msg_src_ip4, msg_src_ip6[4];
	__attribute__((aligned(8))) struct bpf_sock *sk;
};

/* Of the kernel's own structs only the names count: where their fields are is found out when the program is
 * loaded (CO-RE). */
struct sock_common {
	unsigned char skc_ipv6only : 1;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
} __attribute__((preserve_access_index));


struct sockaddr_in {
	__u16 family;
	__be16 port;
	__be32 ip;
	__u8 pad[8];
};

struct sockaddr_in6 {
	__u16 family;
	__be16 port;
	__be32 flow, ip[4], scope;
};

enum { FIELD_BYTE_OFFSET = 0, FIELD_LSHIFT_U64 = 4, FIELD_RSHIFT_U64 = 5 };

HELPER(46, __u64, bpf_get_socket_cookie, void *);
HELPER(7, __u32, bpf_get_prandom_u32, void);
HELPER(64, long, bpf_bind, struct bpf_sock_addr *, void *, int);
HELPER(122, __u64, bpf_get_netns_cookie, void *);
HELPER(136, struct sock *, bpf_skc_to_tcp6_sock, void *);

/* A socket and an address. */
struct socket_key {
	__u64 cookie;
	__be32 ip;
	__be16 port, pad;
};

/* The address that a process dialled. */
struct dialled {
	struct address ip;
	__be16 port, pad;
};

/* The backend of a socket's datagrams to one address. */
struct chosen {
	__u64 seen;
	__u32 backend, generation;
};

#define MAX_SOURCES 16
_Static_assert((MAX_SOURCES & (MAX_SOURCES - 1)) == 0, "a mask is made of it");

/* The node's addresses for connections to tasks of a network: to one task each has some 28,000 ports. */
struct sources {
	__u32 count;
	__be32 ip[MAX_SOURCES];
};

/* By the network's place. */
MAP(BPF_MAP_TYPE_HASH, sources, __u32, struct sources, MAX_NETWORKS);
/* By socket and backend, what was dialled. Connections have their own, so that many of them do not push out what the
 * replies to datagrams need. */
MAP(BPF_MAP_TYPE_LRU_HASH, tcp_dialled, struct socket_key, struct dialled, 65536);
MAP(BPF_MAP_TYPE_LRU_HASH, udp_dialled, struct socket_key, struct dialled, 65536);
/* By socket and address dialled, the backend. */
MAP(BPF_MAP_TYPE_LRU_HASH, udp_chosen, struct socket_key, struct chosen, 65536);
