/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Copies of connections, by CPU: what an established packet needs of its record, in one cache line that only this CPU
 * writes. Looking up the record itself touches three, and with some thousands of connections they are no longer near.
 *
 * A copy is found by the packet's own tuple, whichever way it goes, in one of the two places of this CPU where that may
 * lie, a *set*; the next connection there takes one of them. It counts
 *   - for a tick. So each connection's record is looked up once a tick at least, and has its time of last use, and
 *     whatever happened to the connection meanwhile, as if there were no copies;
 *   - while the revisions are those of its record, as the record itself does, and the epoch is the same (copy_revisions);
 *   - for packets that change nothing in the record: no SYN, FIN, reset, fragment, or error. Where the other end opens the
 *     same connection once more, its own way round, a packet that would have been the first answer to that is known as one
 *     of the older connection for the rest of the tick. (A SYN with ACK, by which TCP answers, has no copy.) So is an
 *     endpoint's packet where the host takes the record over meanwhile, by sending the same under that endpoint's address.
 *
 * There is none of a flow that balance.h translates, nor of one that goes to a tunnel endpoint with an IPv6 address: the
 * next hop has 32 bits here. A connection that becomes a translated one ends all copies of the node (`copy_epoch`).
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/connection.h>
#include <bpfleet/identity.h>
#include <bpfleet/packet.h>

struct connection_copy {
	struct address source;
	struct address destination;
	__u64 rest; /* as connection_key has it, with the tick's lower half where that has zeros */
	__u64 revisions; /* the record's, with the epoch: copy_revisions */
	__u32 next_hop; /* the last word of the record's */
	__u32 ifindex;
	__u32 peer : 24;
	__u32 route : 2;
	__u32 is_reply : 1;
	__u32 is_long : 1; /* goes by the tunnel's device until the tick is over, see direct.h */
	__u32 zero : 4;
	__u32 flow : 24;
	__u32 tick_upper : 8; /* 24 bits of the tick come round in 208 days */
};

_Static_assert(sizeof(struct connection_copy) == 64, "a copy is one cache line");

/* Two, so that connections that share it need not take it from each other at every packet. */
struct copy_set {
	union {
		__u64 words[16]; /* nobody reads it but the programs */
		struct connection_copy copies[2];
	};
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 32 * 1024);
	__uint(map_flags, BPF_F_MMAPABLE); /* its elements then begin at a page, and so each at a cache line */
	__type(key, __u32);
	__type(value, struct copy_set);
} connection_copies SEC(".maps");

struct copy_epoch {
	__u32 number;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct copy_epoch);
} copy_epoch SEC(".maps");

/* Where a packet's copy would lie, NULL if the packet can have none, and as of when. */
struct copy_place {
	struct copy_set *set;
	__u32 tick;
	__u32 epoch;
	__u8 way; /* which of the two: where to look first, and in the end where to write */
	__u8 is_long; /* of the copy that is written there */
};

static __always_inline struct copy_epoch *copy_epoch_find(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&copy_epoch, &zero);
}

/* No copy counts any longer. After whatever changed in a record. */
static __always_inline void copies_forget(void)
{
	struct copy_epoch *epoch = copy_epoch_find();

	if (epoch)
		__sync_fetch_and_add(&epoch->number, 1);
}

/* An address as a number, turned so that the bits in which hosts differ are lower ones. */
static __always_inline __u64 copy_fold(const struct address *address)
{
	return (address->halves[1] >> 32 | address->halves[1] << 32) ^ address->halves[0];
}

/* Products with odd numbers, added: their upper bits depend on all lower ones. */
static __always_inline __u32 copy_mix(__u64 a, __u64 b, __u64 c)
{
	__u64 hash = a * 0x9e3779b97f4a7c15ULL + b * 0xbf58476d1ce4e5b9ULL + c * 0x94d049bb133111ebULL;

	return (hash ^ hash >> 29) * 0xff51afd7ed558ccdULL >> 32;
}

/* Where this CPU has what is found by a hash: of the sets, and of the copies of judgements. */
static __always_inline __u32 copy_index(__u32 hash)
{
	return bpf_get_smp_processor_id() * (copies_mask + 1) + (hash & copies_mask);
}

/* `rest` of a key with 16 bits more where it has zeros. */
static __always_inline __u64 copy_rest(__u64 rest, __u16 more)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return rest | (__u64)more << 48;
#else
	return rest | more;
#endif
}

/* Revisions, and the epoch within the half that is derived from content: so no next revision is what another epoch makes
 * of this one. */
static __always_inline __u64 copy_revisions(__u64 revisions, const struct copy_place *place)
{
	return revisions ^ (__u64)place->epoch << 32;
}

/* Whether a packet may go by a copy. */
static __always_inline bool copy_may_serve(const struct packet *packet)
{
	return packet->kind == PACKET_ANY && packet->part == PART_WHOLE && !(packet->tcp_flags & (TCP_FIN | TCP_RST));
}

/* Where the copy of a packet's flow would lie, whether or not the packet may go by it. The flow is as its endpoint sees it
 * (packet_face). What lies at the place is on its way from here on: the less is asked of it at once, the more is done
 * meanwhile. */
static __always_inline void copy_locate_flow(const struct packet *packet, __u32 now, struct copy_place *place)
{
	const struct copy_epoch *epoch = services_at_tc ? copy_epoch_find() : NULL;
	__u32 hash, index;

	hash = copy_mix(copy_fold(&packet->flow.source), copy_fold(&packet->flow.destination), packet->flow.rest);
	index = copy_index(hash);
	place->set = bpf_map_lookup_elem(&connection_copies, &index);
	place->tick = now;
	place->epoch = epoch ? *(const volatile __u32 *)&epoch->number : 0;
	place->way = hash >> 31;
	if (place->set)
		(void)*(const volatile __u64 *)&place->set->copies[place->way].rest;
}

/* As copy_locate_flow, for packets that may go by a copy. */
static __always_inline void copy_locate(const struct packet *packet, __u32 now, struct copy_place *place)
{
	place->set = NULL;
	if (copy_may_serve(packet))
		copy_locate_flow(packet, now, place);
}

/* Whether a copy is the packet's and counts. */
static __always_inline bool copy_is(const struct connection_copy *copy, const struct copy_place *place,
				    const struct packet *packet, __u64 revisions)
{
	return copy->rest == copy_rest(packet->flow.rest, place->tick) &&
	       copy->revisions == copy_revisions(revisions, place) &&
	       address_equal(&copy->source, &packet->flow.source) &&
	       address_equal(&copy->destination, &packet->flow.destination) &&
	       copy->tick_upper == (place->tick >> 16 & 0xff);
}

/* Whether a copy has been used by somebody in this tick, as far as the tick's lower half says. */
static __always_inline bool copy_is_fresh(const struct connection_copy *copy, const struct copy_place *place)
{
	return !((copy->rest ^ copy_rest(0, place->tick)) & copy_rest(0, 0xffff));
}

/* The packet's copy, if there is one that counts. */
static __always_inline struct connection_copy *copy_look_up(struct copy_place *place, const struct packet *packet,
							    __u64 revisions)
{
	struct connection_copy *copy, *other;

	if (!place->set)
		return NULL;
	copy = &place->set->copies[place->way & 1];
	if (copy_is(copy, place, packet, revisions))
		return copy;
	other = &place->set->copies[~place->way & 1];
	if (copy_is(other, place, packet, revisions))
		return other;
	if (copy_is_fresh(copy, place) && !copy_is_fresh(other, place))
		place->way ^= 1;
	return NULL;
}

/* Keep a copy of a good record that has just let the packet pass. */
static __always_inline void copy_write(const struct copy_place *place, const struct packet *packet,
				       const struct connection *record, bool is_reply)
{
	struct connection_copy *copy;

	if (!place->set || record->translated || !record->ifindex)
		return;
	if (record->route == ROUTE_TUNNEL && !address_is_v4(&record->next_hop))
		return;
	copy = &place->set->copies[place->way & 1];
	copy->source = packet->flow.source;
	copy->destination = packet->flow.destination;
	copy->rest = copy_rest(packet->flow.rest, place->tick);
	copy->revisions = copy_revisions(record->revisions, place);
	copy->next_hop = record->next_hop.words[3];
	copy->ifindex = record->ifindex;
	copy->peer = record->peer;
	copy->route = record->route;
	copy->is_reply = is_reply;
	copy->is_long = place->is_long;
	copy->zero = 0;
	copy->flow = record->flow;
	copy->tick_upper = place->tick >> 16;
}

/* The other end, as the record has it. */
static __always_inline void copy_peer(const struct connection_copy *copy, struct place *peer)
{
	peer->identity = copy->peer;
	peer->route = copy->route;
	if (copy->route == ROUTE_TUNNEL)
		address_from_v4(&peer->next_hop, copy->next_hop);
	else
		next_hop_local(&peer->next_hop, copy->next_hop);
}

static __always_inline bool copy_is_from(const struct connection_copy *copy, const struct address *tunnel_endpoint)
{
	return copy->route == ROUTE_TUNNEL && address_is_v4(tunnel_endpoint) &&
	       copy->next_hop == tunnel_endpoint->words[3];
}
