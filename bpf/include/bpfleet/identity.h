/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who an address belongs to: the `addresses` map (other projects call it ipcache), and where it is reached.
 *
 * One record for each endpoint address of the cluster, for each member's underlay address (identity remote-node,
 * tunnel_endpoint itself) and for this node's own addresses (identity host, ifindex and tunnel_endpoint zero).
 * What is not in it is the world.
 */
#pragma once

#include <bpfleet/base.h>

enum identity {
	IDENTITY_UNKNOWN = 0,
	IDENTITY_HOST = 1,
	IDENTITY_WORLD = 2,
	IDENTITY_WAITING = 5,	  /* an endpoint whose identity has not arrived: passes nothing */
	IDENTITY_REMOTE_NODE = 6, /* another member's host stack */
	IDENTITY_LOWEST = 256,	  /* 1 to 255 are reserved */
};

struct address_key {
	struct address address;
};

struct address_record {
	__u32 identity;
	__u32 ifindex;			/* host-side device of a local endpoint; 0: it is not attached yet, or elsewhere */
	struct address tunnel_endpoint; /* underlay address of the node it is on, zero if it is this one */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address_key);
	__type(value, struct address_record);
} addresses SEC(".maps");

/* How to get a packet to an address. */
enum route {
	ROUTE_STACK = 0,  /* the host's stack: this host itself, or the world */
	ROUTE_LOCAL = 1,  /* an endpoint here; next_hop is its ifindex (next_hop_ifindex) */
	ROUTE_TUNNEL = 2, /* an address of another node; next_hop is that node's underlay address */
	ROUTE_UNJUDGED = 3, /* of connection records of the host only: no policy judged it (host.h) */
};

struct place {
	struct address next_hop;
	__u32 identity;
	__u8 route;
};

/* The ifindex of a local endpoint travels in the last word of next_hop: the two never occur together. */
static __always_inline __u32 next_hop_ifindex(const struct address *next_hop)
{
	return next_hop->words[3];
}

static __always_inline void next_hop_local(struct address *next_hop, __u32 ifindex)
{
	next_hop->halves[0] = 0;
	next_hop->words[2] = 0;
	next_hop->words[3] = ifindex;
}

static __always_inline struct address_record *address_find(const struct address *address)
{
	return bpf_map_lookup_elem(&addresses, address);
}

/* Never fails: an address that is not in the map is the world's, reached through the stack. */
static __always_inline void address_place(const struct address *address, struct place *place)
{
	struct address_record *record = address_find(address);

	place->next_hop.halves[0] = 0;
	place->next_hop.halves[1] = 0;
	place->route = ROUTE_STACK;
	place->identity = IDENTITY_WORLD;
	if (!record)
		return;
	place->identity = record->identity;
	if (!address_is_zero(&record->tunnel_endpoint)) {
		place->route = ROUTE_TUNNEL;
		place->next_hop = record->tunnel_endpoint;
	} else if (record->identity != IDENTITY_HOST) {
		place->route = ROUTE_LOCAL;
		next_hop_local(&place->next_hop, record->ifindex);
	}
}
