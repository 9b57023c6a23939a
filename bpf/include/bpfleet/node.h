/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Values of the node as a whole which change, or are found out, without loading a program again. */
#pragma once

#include <bpfleet/base.h>

struct node {
	__u32 addresses_revision; /* of everything in `addresses`, bound interface indexes included */
	__u32 tunnel_ifindex;	  /* of bpfleet_vxlan; 0: there is none, and nothing can be sent to other nodes */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct node);
} node SEC(".maps");

static __always_inline struct node *node_find(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&node, &zero);
}
