/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* tc ingress of bpfleet_vxlan: what other nodes send.
 *
 *   - a packet is believed only if its outer source is a member, its inner source an address of that member, and its
 *     VNI that address's identity. Each failure has its own reason;
 *   - for an endpoint here, its ingress policy judges, and the packet goes straight to it; what answers a flow to a
 *     service's frontend comes from that again;
 *   - for this node's own address it goes to the stack, where a policy selects this node after its ingress judged;
 *   - anything else is dropped. Nothing is forwarded from node to node.
 *
 * An established packet needs no address look-up: its record names the member and identity that were checked, and
 * is out of date as soon as any address changes.
 *
 * Fails closed: what is not understood is dropped.
 */
#include <bpfleet/admit.h>
#include <bpfleet/balance.h>
#include <bpfleet/forward.h>
#include <bpfleet/host.h>
#include <bpfleet/kernel.h>
#include <bpfleet/vocabulary.h>

struct outer {
	struct address source; /* underlay address the packet came from */
	__u32 vni;
};

/* By itself for the sake of the stack: its key is large. */
static __noinline int outer_read(struct __sk_buff *skb, struct outer *outer)
{
	struct bpf_tunnel_key key; /* the helper fills it, or zeroes it and fails */

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		address_from_v4(&outer->source, bpf_htonl(key.remote_ipv4));
	} else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		__builtin_memcpy(&outer->source, key.remote_ipv6, sizeof(outer->source));
	} else {
		return REASON_TUNNEL_KEY;
	}
	outer->vni = key.tunnel_id;
	return 0;
}

/* The three checks, and where the sender is. Returns 0 or the reason to drop. */
static __always_inline int believe(const struct packet *packet, const struct outer *outer, struct place *sender)
{
	struct address_record *member;

	switch (outer->vni) {
	case IDENTITY_UNKNOWN:
	case IDENTITY_HOST:
	case IDENTITY_WORLD:
	case IDENTITY_WAITING:
		return REASON_TUNNEL_RESERVED;
	}
	member = address_find(&outer->source);
	if (!member || member->identity != IDENTITY_REMOTE_NODE)
		return REASON_TUNNEL_UNKNOWN_NODE;
	address_place(&packet->source, sender);
	if (sender->route != ROUTE_TUNNEL || !address_equal(&sender->next_hop, &outer->source))
		return REASON_TUNNEL_FORGED_SOURCE;
	return sender->identity == outer->vni ? 0 : REASON_TUNNEL_FORGED_IDENTITY;
}

static __always_inline bool is_established(struct __sk_buff *skb, const struct packet *packet,
					   const struct found *found, const struct outer *outer, __u64 revisions)
{
	const struct connection *record = found->record;

	return packet->kind != PACKET_RELATED && record->route == ROUTE_TUNNEL && record->peer == outer->vni &&
	       address_equal(&record->next_hop, &outer->source) &&
	       admit_established(skb, packet, found, record->ifindex, revisions);
}

SEC("tc")
int bpfl_from_tun(struct __sk_buff *skb)
{
	struct packet *packet = packet_begin(HOOK_FROM_TUNNEL, DIRECTION_INGRESS);
	const struct node *this_node = node_find();
	const struct connection_copy *copy;
	const struct endpoint *receiver;
	struct found found = {};
	struct side side = {};
	struct place destination;
	struct outer outer;
	__u64 revisions;
	int reason, unread;

	if (!packet)
		return TC_ACT_SHOT;
	if (!this_node)
		return drop(skb, packet, REASON_NO_TUNNEL_DEVICE);
	unread = packet_parse(skb, packet);
	if (!unread)
		copy_approach(packet, DIRECTION_INGRESS, &found);
	reason = outer_read(skb, &outer);
	if (reason)
		return drop(skb, packet, reason);
	packet->source_identity = outer.vni;
	if (unread)
		return drop(skb, packet, unread);
	if (outer.vni >= IDENTITY_LOWEST)
		packet_of_endpoint(packet);

	side_begin(&side, this_node);
	revisions = revisions_pack(side.policy_revision, side.addresses_revision);
	copy = copy_look_up(&found.copy, packet, revisions);
	if (copy && copy->peer == outer.vni && copy_is_from(copy, &outer.source)) {
		receiver = endpoint_find(copy->ifindex);
		if (receiver) {
			admit_copied(skb, copy, &found);
			return deliver(skb, packet, copy->ifindex, receiver);
		}
	}
	connection_find(packet, DIRECTION_INGRESS, &found);
	if (found.record) {
		found.copy.is_long = kernel_contexts && device_has_packets_wait(skb);
		side.ifindex = found.record->ifindex;
		receiver = endpoint_find(side.ifindex);
		if (receiver && is_established(skb, packet, &found, &outer, revisions))
			return balance_deliver(skb, packet, &found, side.ifindex, receiver);
	}

	reason = believe(packet, &outer, &side.peer);
	if (reason)
		return drop(skb, packet, reason);
	if (address_is_multicast(&packet->destination))
		return drop(skb, packet, REASON_MULTICAST);
	address_place(&packet->destination, &destination);
	packet->destination_identity = destination.identity;
	if (destination.identity == IDENTITY_HOST) {
		if (packet->protocol == IPPROTO_UDP && packet->flow.destination_port == bpf_htons(tunnel_port))
			return drop(skb, packet, REASON_OWN_TUNNEL);
		if (host_policy) {
			host_begin(packet, &found, &side, DIRECTION_INGRESS);
			reason = host_admit(skb, packet, &found, &side);
			if (reason)
				return drop(skb, packet, reason);
		}
		accept_any_mac(skb);
		return pass(skb, REASON_TO_STACK);
	}
	if (destination.route != ROUTE_LOCAL)
		return drop(skb, packet, REASON_UNKNOWN_DESTINATION);
	side.ifindex = next_hop_ifindex(&destination.next_hop);
	receiver = endpoint_find(side.ifindex);
	if (!receiver)
		return drop(skb, packet, REASON_NO_ENDPOINT);
	side.identity = receiver->identity;
	side.direction = DIRECTION_INGRESS;
	packet->destination_identity = receiver->identity;
	reason = admit(skb, packet, &found, &side);
	if (reason)
		return drop(skb, packet, reason);
	return balance_deliver(skb, packet, &found, side.ifindex, receiver);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
