/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The endpoints of this node, by the index of their host-side device. */
#pragma once

#include <bpfleet/base.h>

enum endpoint_flag {
	ENDPOINT_PEER = 1, /* a veth whose other end is in another namespace: deliver by bpf_redirect_peer */
};

struct endpoint_key {
	__u32 ifindex;
};

struct endpoint {
	__u32 identity;
	struct mac workload_mac; /* the workload's own; zero: not known, let the neighbour table resolve it */
	struct mac device_mac;	 /* of the host-side device, which is the workload's gateway */
	__u32 flags;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct endpoint_key);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

static __always_inline struct endpoint *endpoint_find(__u32 ifindex)
{
	return bpf_map_lookup_elem(&endpoints, &ifindex);
}
