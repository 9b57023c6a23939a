/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* tc egress of an endpoint's host-side device: what the host's stack sends to a workload, its own or forwarded.
 *
 *   - ARP, neighbour discovery and DHCP of the host itself pass;
 *   - the peer is the host for what this host itself sends (no device it came in by), whatever its source address;
 *     for forwarded packets the source decides, and it must have come in where that address lives: a host or workload
 *     address that came from elsewhere is dropped as spoofed;
 *   - where a policy selects this node, the host's egress policy judges what the host itself sends;
 *   - ingress policy judges. What other hooks redirected here (delivery without bpf_redirect_peer) has a record, or is
 *     the answer that a service has no backends, or a packet no hop left;
 *   - what answers a flow to a service's frontend comes from that again.
 *
 * Fails closed: what is not understood is dropped.
 */
#include <bpfleet/admit.h>
#include <bpfleet/balance.h>
#include <bpfleet/endpoint.h>
#include <bpfleet/expire.h>
#include <bpfleet/gateway.h>
#include <bpfleet/host.h>
#include <bpfleet/node.h>
#include <bpfleet/refuse.h>
#include <bpfleet/vocabulary.h>

#define INGRESS_FORGOTTEN 0xffffffff /* no device's */

/* The device that a packet came in by; 0: the host itself sends it. Of IPv6 that it takes apart again on its way (its
 * connection tracking puts fragments together) the kernel forgets that, where it cannot use the fragments as they came: so a
 * fragment of none is the host's only with an address that is known for the host's. */
static __always_inline __u32 came_in_by(const struct __sk_buff *skb, const struct packet *packet)
{
	const struct address_record *source;

	if (skb->ingress_ifindex || !packet->is_v6 || packet->part == PART_WHOLE)
		return skb->ingress_ifindex;
	source = address_find(&packet->source);
	return source && source->identity == IDENTITY_HOST ? 0 : INGRESS_FORGOTTEN;
}

/* May a packet from a peer at that place have come in by that device? 0: the host itself sent it. */
static __always_inline bool origin_fits(__u32 ingress_ifindex, __u32 identity, __u8 route,
					const struct address *next_hop, const struct node *node)
{
	if (!ingress_ifindex)
		return true;
	if (route == ROUTE_LOCAL)
		return next_hop_ifindex(next_hop) == ingress_ifindex;
	if (route == ROUTE_TUNNEL)
		return node->tunnel_ifindex == ingress_ifindex;
	return identity != IDENTITY_HOST;
}

static __always_inline int find_ends(struct __sk_buff *skb, struct packet *packet, const struct found *found,
				     struct side *side, const struct node *node, __u32 ingress_ifindex)
{
	struct address_record *destination;

	if (address_is_multicast(&packet->destination))
		return REASON_MULTICAST;
	destination = address_find(&packet->destination);
	if (!destination || destination->ifindex != skb->ifindex)
		return REASON_UNKNOWN_DESTINATION;
	address_place(&packet->source, &side->peer);
	packet->source_identity = side->peer.identity;
	if (!origin_fits(ingress_ifindex, side->peer.identity, side->peer.route, &side->peer.next_hop, node))
		return REASON_SPOOFED_SOURCE;
	/* A connection that the endpoint opened was judged by the address it went to, and still is. */
	if (!ingress_ifindex && !(found->record && found->is_reply)) {
		side->peer.identity = IDENTITY_HOST;
		side->peer.route = ROUTE_STACK;
		side->peer.next_hop.halves[0] = 0;
		side->peer.next_hop.halves[1] = 0;
		packet->source_identity = IDENTITY_HOST;
	}
	return 0;
}

/* To the workload: an answer of a backend as that of the frontend. */
static __always_inline int hand_over(struct __sk_buff *skb, struct packet *packet, const struct found *found)
{
	if (balance_answers(found)) {
		int reason = balance_back(skb, packet, &found->reverse);

		if (reason)
			return drop(skb, packet, reason);
	}
	return pass(skb, REASON_TO_ENDPOINT);
}

SEC("tc")
int bpfl_to_ep(struct __sk_buff *skb)
{
	struct packet *packet = packet_begin(HOOK_TO_ENDPOINT, DIRECTION_INGRESS);
	const struct node *this_node = node_find();
	const struct endpoint *endpoint;
	const struct connection_copy *copy;
	struct found found = {};
	struct side side = {};
	__u32 ingress_ifindex;
	__u64 revisions;
	int reason;

	if (!packet)
		return TC_ACT_SHOT;
	if (this_node)
		side_begin(&side, this_node);
	endpoint = endpoint_find(skb->ifindex); /* after that: its identity is what policy judges */
	if (!endpoint || !this_node)
		return drop(skb, packet, REASON_NO_ENDPOINT);
	packet->destination_identity = endpoint->identity;
	if (skb->protocol == bpf_htons(ETH_P_ARP) && !skb->vlan_present)
		return pass(skb, REASON_NEIGHBOUR);
	reason = packet_parse(skb, packet);
	if (reason)
		return drop(skb, packet, reason);
	ingress_ifindex = came_in_by(skb, packet);
	if (!ingress_ifindex && (packet_is_neighbour(packet) || packet_is_dhcp(packet, false)))
		return pass(skb, REASON_NEIGHBOUR);
	if (services_at_tc && is_refusal(skb, packet))
		return pass(skb, REASON_SERVICE);
	if (is_expiry(skb, packet))
		return pass(skb, REASON_TO_ENDPOINT);

	if (host_policy && !ingress_ifindex) {
		packet->source_identity = IDENTITY_HOST;
		side.peer.identity = endpoint->identity;
		side.peer.route = ROUTE_LOCAL;
		next_hop_local(&side.peer.next_hop, skb->ifindex);
		reason = host_sends(skb, packet, &found, &side);
		if (reason)
			return drop(skb, packet, reason);
	}

	side.ifindex = skb->ifindex;
	side.identity = packet->destination_identity;
	side.direction = DIRECTION_INGRESS;
	revisions = revisions_pack(side.policy_revision, side.addresses_revision);
	copy_approach(packet, DIRECTION_INGRESS, &found);
	copy = copy_look_up(&found.copy, packet, revisions);
	if (copy && copy->ifindex == skb->ifindex) {
		copy_peer(copy, &side.peer);
		if (origin_fits(ingress_ifindex, side.peer.identity, side.peer.route, &side.peer.next_hop, this_node)) {
			admit_copied(skb, copy, &found);
			return pass(skb, REASON_TO_ENDPOINT);
		}
	}
	connection_find(packet, DIRECTION_INGRESS, &found);
	if (packet->kind != PACKET_RELATED && found.record &&
	    origin_fits(ingress_ifindex, found.record->peer, found.record->route, &found.record->next_hop, this_node) &&
	    admit_established(skb, packet, &found, skb->ifindex, revisions))
		return hand_over(skb, packet, &found);

	reason = find_ends(skb, packet, &found, &side, this_node, ingress_ifindex);
	if (!reason)
		reason = admit(skb, packet, &found, &side);
	if (reason)
		return drop(skb, packet, reason);
	return hand_over(skb, packet, &found);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
