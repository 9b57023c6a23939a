/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Connections: what policy let through, so that later packets skip policy and replies pass.
 *
 * The key is the tuple as the initiator sends it, and which side's policy judged it: a connection between two endpoints
 * of one node has two records, one for the sender's egress and one for the receiver's ingress. A reply finds its
 * connection under the reversed tuple and the other direction of the same endpoint. An ICMP echo is keyed by its
 * identifier as the source port of the request.
 *
 * A record is good while both revisions in it are current: that of all policies (generation.h) and that of
 * all addresses (`node`), and while the packet uses the same endpoint. Otherwise its next packet is judged anew, in
 * the record's own direction, and the record is written again. One that is then denied stays, marked, so that neither
 * direction can revive the connection by posing as a new one.
 *
 * A reset ends its sender's side of a connection, as a FIN does, and no more: without sequence numbers it cannot be told
 * from one that a stranger sends in a side's name and that both ends ignore (RFC 5961 3). Both sides must have ended for
 * the record to end soon.
 *
 * A writer changes `addresses` and `endpoints` first and node.addresses_revision second; a program reads the revision
 * first and the maps second. So nothing judged by old addresses, or as who an endpoint was before, ever carries the new
 * revision. Before them the writer puts one that is neither's, as the old one is in force again where a change is put
 * back. For policies the generation sees to that.
 *
 * Key and record have 40 bytes each because the kernel's element header has 48: an element is two cache lines.
 */
#pragma once

#include <stddef.h>

#include <linux/in.h>

#include <bpfleet/base.h>
#include <bpfleet/identity.h>

enum connection_state {
	CONNECTION_REPLIED = 1,	       /* the responder has answered, not only reset */
	CONNECTION_END_INITIATOR = 2,  /* it has sent a FIN or a reset */
	CONNECTION_END_RESPONDER = 4,
	CONNECTION_DENIED = 16,	       /* was allowed, is no longer; its flow names why */
};

/* Time is kept in ticks of 2^30 ns (1.07 s) of the monotonic clock: a shift where a second would be a division. */
enum connection_time {
	CONNECTION_TICK_SHIFT = 30,
	CONNECTION_TCP_TICKS = 7451,  /* 8000 s */
	CONNECTION_OTHER_TICKS = 56,  /* 60 s: UDP, ICMP, and TCP until the responder answers */
	CONNECTION_CLOSING_TICKS = 10, /* 10 s: after a FIN or reset of each side */
};

struct connection_key {
	struct address source;
	struct address destination;
	union {
		struct {
			__be16 source_port;
			__be16 destination_port;
			__u8 protocol;
			__u8 direction;
			__u16 zero;
		};
		__u64 rest; /* written at once, see address_from_v4; connection_rest makes it */
	};
};

struct connection {
	union {
		struct {
			__u32 policy_revision;
			__u32 addresses_revision;
		};
		__u64 revisions;
	};
	struct address next_hop; /* where the other end is, see enum route */
	__u32 flow; /* its slot (flow.h), which names the rule */
	__u32 ifindex : 31; /* the endpoint's device: a hit proves that the packet uses the endpoint it was checked for */
	__u32 translated : 1; /* an endpoint's flow to a frontend, see balance.h: its answers go through `translations` */
	__u32 last_seen; /* ticks */
	__u32 peer : 24; /* identity of the other end */
	__u32 route : 2;
	__u32 state : 6;
};

_Static_assert(sizeof(struct connection_key) == 40, "an element fills two cache lines");
_Static_assert(sizeof(struct connection) == 40, "an element fills two cache lines");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct connection_key);
	__type(value, struct connection);
} connections SEC(".maps");

/* While the map is made anew in another size, programs are replaced hook by hook, twice: by some that write into both maps
 * and look into the new one first (connections_move), and once all that has been recorded before is copied, by some that
 * know the new one alone. So whatever two programs are at two hooks at a time, each finds what the other has recorded. At
 * all other times this is `connections` too, which no program looks at. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct connection_key);
	__type(value, struct connection);
} connections_next SEC(".maps");

static __always_inline struct connection *connection_look_up(const struct connection_key *key)
{
	struct connection *record = connections_move ? bpf_map_lookup_elem(&connections_next, key) : NULL;

	return record ? record : bpf_map_lookup_elem(&connections, key);
}

static __always_inline long connection_write(const struct connection_key *key, const struct connection *record)
{
	if (connections_move && bpf_map_update_elem(&connections_next, key, record, BPF_ANY))
		return -1;
	return bpf_map_update_elem(&connections, key, record, BPF_ANY);
}

/* The two sides of a connection may be seen by two CPUs at once, and neither may undo what the other writes. */
static __always_inline void connection_add_state(struct connection *record, __u8 state)
{
	__u32 *word = (void *)record + offsetof(struct connection, last_seen) + sizeof(record->last_seen);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	__sync_fetch_and_or(word, (__u32)state << 26);
#else
	__sync_fetch_and_or(word, state);
#endif
}

static __always_inline __u64 revisions_pack(__u32 policy_revision, __u32 addresses_revision)
{
	return (__u64)addresses_revision << 32 | policy_revision;
}

static __always_inline __u32 connection_now(void)
{
	return clock_coarse_ns() >> CONNECTION_TICK_SHIFT;
}

static __always_inline __u64 connection_rest(__be16 source_port, __be16 destination_port, __u8 protocol,
					     __u8 direction)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return source_port | (__u64)destination_port << 16 | (__u64)protocol << 32 | (__u64)direction << 40;
#else
	return (__u64)source_port << 48 | (__u64)destination_port << 32 | (__u64)protocol << 24 |
	       (__u64)direction << 16;
#endif
}

/* The tuple of the other way, as the same endpoint sees it. */
static __always_inline void connection_reverse(struct connection_key *to, const struct connection_key *from)
{
	to->source = from->destination;
	to->destination = from->source;
	to->rest = connection_rest(from->destination_port, from->source_port, from->protocol, !from->direction);
}

static __always_inline bool connection_is_live(const struct connection *record, __u8 protocol, __u32 now)
{
	__s32 limit = CONNECTION_OTHER_TICKS;
	__u8 state = record->state;

	if (protocol == IPPROTO_TCP) {
		__u8 ends = CONNECTION_END_INITIATOR | CONNECTION_END_RESPONDER;

		if (state & CONNECTION_DENIED)
			limit = CONNECTION_TCP_TICKS;
		else if ((state & ends) == ends)
			limit = CONNECTION_CLOSING_TICKS;
		else if (state & CONNECTION_REPLIED)
			limit = CONNECTION_TCP_TICKS;
	}
	/* Signed: another CPU may have seen a later tick than this one. */
	return (__s32)(now - record->last_seen) <= limit;
}
