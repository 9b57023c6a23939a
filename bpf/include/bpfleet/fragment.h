/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Fragments: the ports of a datagram's first fragment, remembered so that later ones are judged and recognised like it.
 *
 * A first fragment is remembered once it was let through, for as long as a receiver waits for the rest (RFC 791, RFC 8200
 * 4.5: 60 s). A later one that comes before its first, or whose first was forgotten, has no ports (PACKET_FRAGMENT).
 *
 * The key has the device as well: what comes in at one says nothing about another's datagrams.
 *
 * Neither way around policy: a later fragment without a first that was let through is of no use to its receiver, who
 * cannot put it together. A first fragment too short for its transport header is dropped as truncated (RFC 7112). One
 * that would write over a TCP header is dropped as malformed (RFC 1858, RFC 3128); ports lie within the first 8 bytes,
 * which is where the second fragment begins at the earliest. Other overlaps are the receiver's to drop (RFC 5722).
 */
#pragma once

#include <bpfleet/base.h>

enum fragment_time {
	FRAGMENT_TICK_SHIFT = 30, /* as CONNECTION_TICK_SHIFT */
	FRAGMENT_TICKS = 56,	  /* 60 s */
};

#define FRAGMENT_TCP_FIRST 20  /* bytes of a TCP header that no later fragment may have */

struct fragment_key {
	struct address source;
	struct address destination;
	__u32 id;
	__u32 ifindex;
	__u8 protocol; /* of IPv6 as the fragment header says, which may be another extension header */
	__u8 zero[7];
};

struct fragment {
	__u64 rest; /* ports and transport protocol: see struct connection_key */
	__u32 seen; /* ticks */
	__u8 kind;  /* enum packet_kind of what follows */
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

static __always_inline __u32 fragment_now(void)
{
	return bpf_ktime_get_coarse_ns() >> FRAGMENT_TICK_SHIFT;
}

/* What is remembered of a datagram, or NULL. */
static __always_inline const struct fragment *fragment_find(const struct fragment_key *key)
{
	const struct fragment *first = bpf_map_lookup_elem(&fragments, key);

	return first && (__s32)(fragment_now() - first->seen) <= FRAGMENT_TICKS ? first : NULL;
}
