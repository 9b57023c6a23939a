/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Networks from which the underlay takes nothing (Cluster.blocked_cidrs), by longest prefix.
 *
 * Looked at once for each packet: by XDP where a device has it, else at tc (blocked_at_tc in base.h). The prefix comes
 * first because a trie's key begins with its length; lengths are of the 128-bit form, so IPv4's are 96 and more.
 */
#pragma once

#include <bpfleet/base.h>

struct blocked_key {
	__u32 prefix_length;
	struct address address;
} __attribute__((packed, aligned(4)));

struct blocked_network {
	__u32 blocked; /* 1: a trie needs a value */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct blocked_key);
	__type(value, struct blocked_network);
} blocked SEC(".maps");

static __always_inline bool is_blocked(const struct address *address)
{
	struct blocked_key key = { .prefix_length = 128 };

	__builtin_memcpy(&key.address, address, sizeof(key.address));
	return bpf_map_lookup_elem(&blocked, &key);
}
