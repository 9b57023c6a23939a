/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* tc ingress of an endpoint's host-side device: what a workload sends.
 *
 *   - ARP, neighbour discovery and DHCP between the workload and its gateway always pass, to the stack; what routers say
 *     (advertisements, redirects) does not;
 *   - a source that is not the endpoint's own address is dropped;
 *   - a service's frontend becomes one of its backends, for all that follows; without a backend the sender is told so;
 *   - egress policy judges; for an endpoint of this node its ingress policy judges right here too, and the packet goes
 *     straight to it;
 *   - another node's address is reached through the tunnel, with this endpoint's identity as VNI. That includes that
 *     node's underlay address (remote-node), as its answers come back through the tunnel too. A packet of an established
 *     connection may go past the tunnel's device and the host's stack (direct_send.h);
 *   - what has no hop left for that is answered, as by a router;
 *   - everything else, this host and the world, is the stack's. The host is whatever address the stack says it takes in;
 *     where a policy selects this node, the host's ingress policy judges that. Nothing goes there by the tunnel's port.
 *
 * Fails closed: what is not understood is dropped.
 */
#include <bpfleet/admit.h>
#include <bpfleet/balance.h>
#include <bpfleet/direct_send.h>
#include <bpfleet/expire.h>
#include <bpfleet/forward.h>
#include <bpfleet/gateway.h>
#include <bpfleet/host.h>
#include <bpfleet/refuse.h>
#include <bpfleet/unfinished.h>
#include <bpfleet/vocabulary.h>

static __always_inline bool is_own(const struct __sk_buff *skb, const struct address *address)
{
	const struct address_record *record = address_find(address);

	return record && record->ifindex == skb->ifindex;
}

/* Neighbour discovery, but for what only routers say: that would give this host routes and addresses. */
static __always_inline bool is_discovery(const struct packet *packet)
{
	return packet_is_neighbour(packet) && packet->icmp_type != ICMPV6_ROUTER_ADVERTISEMENT &&
	       packet->icmp_type != ICMPV6_REDIRECT;
}

/* From a client that has no address yet, or its own. */
static __always_inline bool is_dhcp_request(const struct __sk_buff *skb, const struct packet *packet)
{
	if (!packet_is_dhcp(packet, true))
		return false;
	if (packet->is_v6 ? address_is_link_local_v6(&packet->source) : !packet->source.words[3])
		return true;
	return is_own(skb, &packet->source);
}

/* Traffic with the gateway that is no connection. Neighbour discovery counts only towards the link, where the stack
 * consumes it: to any other address it would be a way around policy. */
static __always_inline bool is_for_gateway(const struct __sk_buff *skb, const struct packet *packet)
{
	struct address_record *record;

	if (is_discovery(packet)) {
		if (address_is_link_local_v6(&packet->destination))
			return true;
	} else if (is_dhcp_request(skb, packet)) {
		if (packet->is_v6 ? address_is_link_local_v6(&packet->destination) :
				    packet->destination.words[3] == 0xffffffff)
			return true;
	} else {
		return false;
	}
	record = address_find(&packet->destination);
	return record && record->identity == IDENTITY_HOST;
}

/* Both ends of a packet without a good record. Returns 0 or the reason to drop. */
static __always_inline int find_ends(struct __sk_buff *skb, struct packet *packet, struct side *side, __u32 now)
{
	if (address_is_multicast(&packet->destination))
		return REASON_MULTICAST;
	if (!is_own(skb, &packet->source))
		return REASON_SPOOFED_SOURCE;
	if (judgement_may_have_copy(packet)) {
		side_recall(side, packet, &packet->destination, now);
		if (side->is_judged && judgement_peer(side->judged, &side->peer)) {
			packet->destination_identity = side->peer.identity;
			return 0;
		}
	}
	address_place(&packet->destination, &side->peer);
	if (side->peer.identity == IDENTITY_WORLD && stack_keeps(skb, packet))
		side->peer.identity = IDENTITY_HOST;
	packet->destination_identity = side->peer.identity;
	if (side->peer.route == ROUTE_LOCAL && !next_hop_ifindex(&side->peer.next_hop))
		return REASON_NO_ENDPOINT;
	/* To any address that is no workload's: a member may have more than `addresses` knows, and this host may masquerade
	 * what leaves it as its own. */
	if (packet->protocol == IPPROTO_UDP && packet->flow.destination_port == bpf_htons(tunnel_port) &&
	    (side->peer.route == ROUTE_STACK || side->peer.identity == IDENTITY_REMOTE_NODE))
		return REASON_OWN_TUNNEL;
	return 0;
}

/* The receiving endpoint's judgement, when it is on this node. */
static __always_inline int admit_at_receiver(struct __sk_buff *skb, struct packet *packet, struct found *found,
					     struct side *side, const struct endpoint *receiver, __u32 ifindex)
{
	__u64 revisions = revisions_pack(side->policy_revision, side->addresses_revision);
	const struct connection_copy *copy;

	copy_approach(packet, DIRECTION_INGRESS, found);
	copy = copy_look_up(&found->copy, packet, revisions);
	if (copy && copy->ifindex == ifindex) {
		admit_copied(skb, copy, found);
		return 0;
	}
	connection_find(packet, DIRECTION_INGRESS, found);
	if (admit_established(skb, packet, found, ifindex, revisions))
		return 0;
	side->peer.identity = packet->source_identity;
	side->peer.route = ROUTE_LOCAL;
	next_hop_local(&side->peer.next_hop, skb->ifindex);
	side->ifindex = ifindex;
	side->identity = receiver->identity;
	side->direction = DIRECTION_INGRESS;
	side->judged = NULL;
	packet->destination_identity = receiver->identity;
	return admit(skb, packet, found, side);
}

/* The host's own judgement, where the packet is for it. */
static __always_inline int admit_at_host(struct __sk_buff *skb, struct packet *packet, struct found *found,
					 struct side *side)
{
	host_begin(packet, found, side, DIRECTION_INGRESS);
	side->peer.identity = packet->source_identity;
	side->peer.route = ROUTE_LOCAL;
	next_hop_local(&side->peer.next_hop, skb->ifindex);
	return host_admit(skb, packet, found, side);
}

SEC("tc")
int bpfl_from_ep(struct __sk_buff *skb)
{
	struct packet *packet = packet_begin(HOOK_FROM_ENDPOINT, DIRECTION_EGRESS);
	const struct endpoint *endpoint, *receiver;
	const struct node *this_node = node_find();
	const struct connection_copy *copy;
	struct found found = {};
	struct side side = {};
	__u64 revisions;
	int reason;

	if (!packet)
		return TC_ACT_SHOT;
	reason = packet_parse(skb, packet);
	if (!reason) {
		copy_approach(packet, DIRECTION_EGRESS, &found);
		judgement_approach(packet, skb->ifindex, DIRECTION_EGRESS);
	}
	if (this_node)
		side_begin(&side, this_node);
	endpoint = endpoint_find(skb->ifindex); /* after that: its identity is what policy judges */
	if (!endpoint || !this_node)
		return drop(skb, packet, REASON_NO_ENDPOINT);
	packet->source_identity = endpoint->identity;
	if (skb->protocol == bpf_htons(ETH_P_ARP) && !skb->vlan_present)
		return pass(skb, REASON_NEIGHBOUR);
	if (reason)
		return drop(skb, packet, reason);
	if (is_unfinished_elsewhere(skb, packet))
		return drop(skb, packet, REASON_MALFORMED);
	if (is_for_gateway(skb, packet))
		return pass(skb, REASON_NEIGHBOUR);
	if (packet->source_identity == IDENTITY_WAITING)
		return drop(skb, packet, REASON_WAITING);

	side.ifindex = skb->ifindex;
	side.identity = packet->source_identity;
	side.direction = DIRECTION_EGRESS;
	packet_of_endpoint(packet);
	revisions = revisions_pack(side.policy_revision, side.addresses_revision);
	copy = copy_look_up(&found.copy, packet, revisions);
	if (copy && copy->ifindex != skb->ifindex)
		copy = NULL;
	if (copy) {
		admit_copied(skb, copy, &found);
		copy_peer(copy, &side.peer);
		packet->destination_identity = copy->peer;
	} else {
		connection_find(packet, DIRECTION_EGRESS, &found);
		reason = balance_out(skb, packet, &found);
		if (reason == REASON_SERVICE_NO_BACKEND)
			return refuse(skb, packet, reason, endpoint);
		if (reason)
			return drop(skb, packet, reason);
		if (packet->kind != PACKET_RELATED &&
		    admit_established(skb, packet, &found, skb->ifindex, revisions)) {
			side.peer.next_hop = found.record->next_hop;
			side.peer.route = found.record->route;
			packet->destination_identity = found.record->peer;
		} else {
			reason = find_ends(skb, packet, &side, found.now);
			if (!reason)
				reason = admit(skb, packet, &found, &side);
			if (reason)
				return drop(skb, packet, reason);
		}
	}

	if (side.peer.route == ROUTE_STACK) {
		if (host_policy && packet->destination_identity == IDENTITY_HOST) {
			reason = admit_at_host(skb, packet, &found, &side);
			if (reason)
				return drop(skb, packet, reason);
		}
		return pass(skb, REASON_TO_STACK);
	}
	if (side.peer.route == ROUTE_TUNNEL) {
		reason = hop_decrement(skb, packet);
		if (reason == REASON_HOP_LIMIT)
			return expire(skb, packet, endpoint);
		if (reason)
			return drop(skb, packet, reason);
		if (copy && direct_delivery && kernel_contexts) {
			int action = send_directly(skb, packet, copy->next_hop, found.copy.tick);

			if (action >= 0)
				return action;
		}
		return tunnel_send(skb, packet, packet->source_identity, &side.peer.next_hop,
				   this_node->tunnel_ifindex);
	}
	{
		__u32 ifindex = next_hop_ifindex(&side.peer.next_hop);

		receiver = endpoint_find(ifindex);
		if (!receiver)
			return drop(skb, packet, REASON_NO_ENDPOINT);
		reason = admit_at_receiver(skb, packet, &found, &side, receiver, ifindex);
		if (!reason)
			reason = hop_decrement(skb, packet);
		if (reason == REASON_HOP_LIMIT)
			return expire(skb, packet, endpoint);
		if (reason)
			return drop(skb, packet, reason);
		return balance_deliver(skb, packet, &found, ifindex, receiver);
	}
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
