/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Copies of judgements, by CPU: what policy said of an endpoint's new connection to a port of another endpoint, where that
 * one is, and which flow it counts for, in one cache line that only this CPU writes. Finding the same out touches up to ten:
 * of `addresses`, of the policy's entries, and of the history.
 *
 * A copy is found by the question, in one of the two places of this CPU where that may lie; the next question there takes
 * one of them. It counts while the revisions are those in force when it was judged, as for a connection's record, and says
 * all that policy would: nothing that it asks has a life of its own. What the stack is asked (stack_keeps) has, so there
 * are copies only where both ends are known by their identity. A flow's slot is believed within a tick, in which it cannot
 * change hands; after that it is a hint, and the slot itself says whose it is.
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/connection.h>
#include <bpfleet/connection_copy.h>
#include <bpfleet/flow.h>
#include <bpfleet/identity.h>
#include <bpfleet/packet.h>

struct judgement_copy {
	struct address peer_address;
	__u64 revisions;
	__u32 subject;
	__u32 asked; /* judgement_asked */
	__u32 rule_id;
	__u32 next_hop; /* the last word of where the peer is, of egress; an IPv6 tunnel endpoint has none */
	__u32 peer : 24;
	__u32 route : 2;
	__u32 verdict : 6;
	__u32 flow;
	__u32 tick; /* in which the flow was last seen to have that slot */
	__u32 zero[3];
};

_Static_assert(sizeof(struct judgement_copy) == 64, "a copy is one cache line");

/* As many of each CPU as there are sets in `connection_copies`. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 32 * 1024);
	__uint(map_flags, BPF_F_MMAPABLE); /* its elements then begin at a page, and so each at a cache line */
	__type(key, __u32);
	__type(value, struct judgement_copy);
} judgement_copies SEC(".maps");

static __always_inline __u32 judgement_asked(const struct packet *packet, __u8 direction)
{
	return (__u32)packet_port(packet) << 16 | packet->protocol << 8 | direction;
}

/* Whether there are copies of such packets: whole ones that may open a connection. */
static __always_inline bool judgement_may_have_copy(const struct packet *packet)
{
	return packet->kind <= PACKET_OPENS && packet->part == PART_WHOLE;
}

/* One of the two places, `way`, of the copy of what an endpoint's policy says of a peer. By the endpoint's device, which is
 * known before its identity. */
static __always_inline struct judgement_copy *judgement_place(__u32 ifindex, const struct address *peer, __u32 asked,
							      __u32 way)
{
	__u32 index = copy_index(copy_mix(copy_fold(peer), (__u64)ifindex << 32 | asked, 0) ^ way);

	return bpf_map_lookup_elem(&judgement_copies, &index);
}

/* Have on their way the copy that a packet which opens a connection will be judged by, and where its record will be put:
 * both are far away, and so the two are waited for at once. */
static __always_inline void judgement_approach(const struct packet *packet, __u32 ifindex, __u8 direction)
{
	const struct judgement_copy *copy;

	if (packet->kind != PACKET_OPENS || packet->part != PART_WHOLE)
		return;
	copy = judgement_place(ifindex, &packet->destination, judgement_asked(packet, direction), 0);
	if (copy)
		(void)*(const volatile __u64 *)&copy->revisions;
	connection_look_up(&packet->flow);
}

/* Whether what lies there answers the question. */
static __always_inline bool judgement_is(const struct judgement_copy *copy, __u32 subject, const struct address *peer,
					 __u32 asked, __u64 revisions)
{
	return copy->revisions == revisions && copy->subject == subject && copy->asked == asked &&
	       address_equal(&copy->peer_address, peer);
}

/* Where the peer is. False: that does not fit in a copy. */
static __always_inline bool judgement_peer(const struct judgement_copy *copy, struct place *peer)
{
	peer->identity = copy->peer;
	peer->route = copy->route;
	if (copy->route == ROUTE_LOCAL)
		next_hop_local(&peer->next_hop, copy->next_hop);
	else if (copy->route == ROUTE_TUNNEL && copy->next_hop)
		address_from_v4(&peer->next_hop, copy->next_hop);
	else
		return false;
	return true;
}

static __always_inline __u32 judgement_next_hop(const struct place *peer)
{
	if (peer->route == ROUTE_TUNNEL && !address_is_v4(&peer->next_hop))
		return 0;
	return peer->next_hop.words[3];
}
