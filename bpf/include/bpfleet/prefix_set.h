/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Prefix sets: of an address without identity, the class that policy entries name it by.
 *
 * The CIDRs and exceptions of one direction's rules are the prefixes of a set; a class is the number of the longest one
 * that holds the address. The compiler expands each rule over the classes that lie in its CIDRs and in none of its
 * exceptions, so that every covering CIDR counts and the policy map is still looked up exactly.
 *
 * A set never changes: its id is derived from its content. A change puts new sets first, then swaps the policy maps that
 * name them, and removes last what nobody names.
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/identity.h>

struct prefix_set {
	__u32 id;
};

struct prefix_key {
	__u32 prefixlen; /* of the 128-bit form: that of an IPv4 prefix is 96 longer */
	struct address address;
} __attribute__((packed, aligned(4))); /* a trie's data follows its length without a gap */

struct prefix_class {
	__u32 peer; /* from POLICY_FIRST_CLASS on; world for addresses in no prefix of their own family */
};

struct prefix_classes {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct prefix_key));
	__uint(value_size, sizeof(struct prefix_class));
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_set);
	__array(values, struct prefix_classes);
} prefix_sets SEC(".maps");

/* The class of an address into *peer, which stays as it is if the address is in no prefix. False: no such set. */
static __always_inline bool prefix_set_find(__u32 id, const struct address *address, __u32 *peer)
{
	struct prefix_key key = { .prefixlen = 128, .address = *address };
	const struct prefix_class *found;
	void *set = bpf_map_lookup_elem(&prefix_sets, &id);

	if (!set)
		return false;
	found = bpf_map_lookup_elem(set, &key);
	if (found)
		*peer = found->peer;
	return true;
}
