/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The host itself as an endpoint: what its processes send and receive is judged by the policies that select this node,
 * which are those of IDENTITY_HOST in `policies`. With host_policy off, all of it is removed by the verifier.
 *
 * The host's own is what the stack takes in (is_for_host) and what it sends without having got it from a device. What it
 * forwards is not, whatever address it leaves with. Other software may masquerade forwarded traffic as the host's: such a
 * connection is recorded when it leaves, unjudged, so that its answers pass.
 *
 * Never judged, or a policy could cut the node off: ARP (and whatever else is not IP), neighbour discovery, multicast
 * listener reports, DHCP of the host as a client, tunnel packets between members, failsafe ports. Loopback passes none of
 * our hooks.
 *
 * Records of the host have no device. They never meet an endpoint's: each end of a connection has its own direction.
 *
 * Fails closed: IP that is not understood is dropped if it is the host's own. A later fragment passes inward, as the
 * stack does nothing with it unless the first one, which has the ports, passed as well; outward it would carry data, so
 * it is judged as any endpoint's.
 */
#pragma once

#include <bpfleet/admit.h>
#include <bpfleet/failsafe.h>
#include <bpfleet/gateway.h>
#include <bpfleet/node.h>

#define HOST_IFINDEX 0

/* Multicast listener discovery (RFC 2710, RFC 3810): without it switches do not pass on neighbour discovery. */
static __always_inline bool packet_is_listener_report(const struct packet *packet)
{
	return packet->protocol == IPPROTO_ICMPV6 && packet->kind == PACKET_UNTRACKED && packet->hop_limit == 1 &&
	       ((packet->icmp_type >= 130 && packet->icmp_type <= 132) || packet->icmp_type == 143);
}

/* What the host needs in order to have addresses and neighbours at all. */
static __always_inline bool host_is_link_traffic(const struct packet *packet, __u8 direction)
{
	return packet_is_neighbour(packet) || packet_is_listener_report(packet) ||
	       packet_is_dhcp(packet, direction == DIRECTION_EGRESS);
}

/* A link-local address at an underlay device is a neighbour's, even where it is that of our workloads' gateway. */
static __always_inline bool is_neighbours(const struct address *address)
{
	return address_is_v4(address) ? (address->words[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000) :
					address_is_link_local_v6(address);
}

/* The other end of the host's traffic at an underlay device. */
static __always_inline void underlay_place(const struct address *address, struct place *place)
{
	const struct address_record *record = address_find(address);

	place->next_hop.halves[0] = 0;
	place->next_hop.halves[1] = 0;
	place->route = ROUTE_STACK;
	place->identity = record && !is_neighbours(address) ? record->identity : IDENTITY_WORLD;
}

/* Tunnel packets between members, their later fragments, and errors about them. `peer` is the other end of the flow. */
static __always_inline bool host_is_tunnel(const struct packet *packet, __u32 peer)
{
	__be16 port = bpf_htons(tunnel_port);

	if (peer != IDENTITY_REMOTE_NODE || packet->flow.protocol != IPPROTO_UDP)
		return false;
	return packet->kind == PACKET_FRAGMENT || packet->flow.destination_port == port ||
	       (packet->kind == PACKET_RELATED && packet->flow.source_port == port);
}

/* Whether the stack takes in what goes to the destination, or has no route at all for it: its answer is the same. A route
 * that says to drop (blackhole, unreachable, prohibit) is one. */
static __noinline bool stack_keeps(struct __sk_buff *skb, const struct packet *packet)
{
	struct bpf_fib_lookup route = { .ifindex = skb->ifindex };
	long answer;

	if (packet->is_v6) {
		route.family = 10; /* AF_INET6 */
		__builtin_memcpy(route.ipv6_src, &packet->source, sizeof(route.ipv6_src));
		__builtin_memcpy(route.ipv6_dst, &packet->destination, sizeof(route.ipv6_dst));
	} else {
		route.family = 2; /* AF_INET */
		route.ipv4_src = packet->source.words[3];
		route.ipv4_dst = packet->destination.words[3];
	}
	answer = bpf_fib_lookup(skb, &route, sizeof(route), 0);
	return answer < 0 || answer == BPF_FIB_LKUP_RET_NOT_FWDED || answer == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* Whether the stack will take the packet in. Its own word counts where `addresses` does not know: an address that was
 * added since, a broadcast or an anycast address must not be a way around policy. */
static __always_inline bool is_for_host(struct __sk_buff *skb, const struct packet *packet)
{
	const struct address_record *record = address_find(&packet->destination);

	if (record)
		return record->identity == IDENTITY_HOST;
	return address_is_multicast(&packet->destination) || stack_keeps(skb, packet);
}

/* Begin a judgement, after side_begin: the side, and the connection the packet belongs to. */
static __always_inline void host_begin(struct packet *packet, struct found *found, struct side *side, __u8 direction)
{
	side->ifindex = HOST_IFINDEX;
	side->identity = IDENTITY_HOST;
	side->direction = direction;
	side->judged = NULL;
	connection_find(packet, direction, found);
}

/* True if a record of the host lets the packet pass. An unjudged connection vouches for its answers only. */
static __always_inline bool host_is_established(struct __sk_buff *skb, const struct packet *packet,
						const struct found *found, const struct side *side)
{
	const struct connection *record = found->record;

	if (!record || record->ifindex != HOST_IFINDEX)
		return false;
	if (record->route == ROUTE_UNJUDGED) {
		if (found->is_reply)
			connection_touch(packet, found);
		return found->is_reply;
	}
	return packet->kind != PACKET_RELATED &&
	       admit_established(skb, packet, found, HOST_IFINDEX,
				 revisions_pack(side->policy_revision, side->addresses_revision));
}

/* Record a connection that leaves without having been judged. What has a record that is not its own keeps that one. */
static __always_inline int host_record_unjudged(struct __sk_buff *skb, const struct packet *packet,
						const struct found *found)
{
	struct connection fresh = {
		.route = ROUTE_UNJUDGED,
		.ifindex = HOST_IFINDEX,
		.last_seen = found->now,
		.peer = packet->destination_identity,
	};

	if (packet->part == PART_FIRST)
		packet_remember(skb, packet);
	if (found->record) {
		connection_touch(packet, found);
		return 0;
	}
	if (packet->kind > PACKET_OPENS || (packet->tcp_flags & TCP_RST))
		return 0;
	return connection_write(&packet->flow, &fresh) ? REASON_CONNECTION_INSERT : 0;
}

/* The host's policy on a packet of its own, after host_begin, with side->peer as the other end and both identities in
 * the packet. Returns 0 to let it pass or the reason to drop it. */
static __always_inline int host_admit(struct __sk_buff *skb, struct packet *packet, struct found *found,
				      struct side *side)
{
	if (host_is_established(skb, packet, found, side))
		return 0;
	if (failsafe_inbound(packet, side->direction)) {
		if (packet->kind == PACKET_OPENS) {
			packet->direction = side->direction;
			packet->verdict = VERDICT_ALLOW;
			packet->rule_id = 0; /* not that of the sender's policy */
			event_write(skb, packet, REASON_FAILSAFE);
		}
		if (packet->part == PART_FIRST)
			packet_remember(skb, packet);
		return 0;
	}
	if (failsafe_outbound(packet, side->direction)) {
		/* What policy let pass ends with that policy, answers and all; this does not. */
		if (found->record && found->record->route != ROUTE_UNJUDGED)
			found->record = NULL;
		return host_record_unjudged(skb, packet, found);
	}
	if (packet->kind == PACKET_FRAGMENT && side->direction == DIRECTION_INGRESS)
		return 0;
	return admit(skb, packet, found, side);
}

/* An error that the host reports about what it only forwards. */
static __always_inline bool host_is_router_error(const struct packet *packet, const struct found *found)
{
	const struct address_record *record;

	if (packet->kind != PACKET_RELATED || found->record)
		return false;
	record = address_find(&packet->flow.source);
	return !record || record->identity != IDENTITY_HOST;
}

/* What leaves this host's stack towards side->peer, its own or forwarded, after side_begin. As host_admit. */
static __always_inline int host_sends(struct __sk_buff *skb, struct packet *packet, struct found *found,
				      struct side *side)
{
	bool is_forwarded = skb->ingress_ifindex;

	if (is_forwarded && packet->source_identity != IDENTITY_HOST)
		return 0;
	host_begin(packet, found, side, DIRECTION_EGRESS);
	if (is_forwarded)
		return host_record_unjudged(skb, packet, found);
	if (host_is_router_error(packet, found))
		return 0;
	return host_admit(skb, packet, found, side);
}
