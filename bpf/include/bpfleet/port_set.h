/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Port sets: the interval that a destination port lies in, by which policy entries of ranges name it.
 *
 * The ranges of one direction's rules cut each protocol's ports into intervals, which go into the trie as prefixes; a
 * rule's entries are for the intervals between its ends. ICMP's types and codes are ranges of type << 8 | code.
 * Sets never change, as those of prefix_set.h.
 */
#pragma once

#include <bpfleet/base.h>

#define PORT_SET_NONE 0xffffffff /* the port is in no interval */

struct port_set {
	__u32 id;
};

struct port_key {
	__u32 prefixlen;
	__be16 protocol; /* always whole */
	__be16 port;
};

struct port_interval {
	__u32 interval; /* below 65536, counted for each protocol */
};

struct port_intervals {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct port_key));
	__uint(value_size, sizeof(struct port_interval));
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_set);
	__array(values, struct port_intervals);
} port_sets SEC(".maps");

/* The interval of a port into *interval, which stays as it is if there is none. False: no such set. */
static __always_inline bool port_set_find(__u32 id, __u8 protocol, __u16 port, __u32 *interval)
{
	struct port_key key = {
		.prefixlen = 32,
		.protocol = bpf_htons(protocol),
		.port = bpf_htons(port),
	};
	const struct port_interval *found;
	void *set = bpf_map_lookup_elem(&port_sets, &id);

	if (!set)
		return false;
	found = bpf_map_lookup_elem(set, &key);
	if (found)
		*interval = found->interval;
	return true;
}
