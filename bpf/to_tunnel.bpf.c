/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* tc egress of bpfleet_vxlan: what this host's own stack sends to workloads of other nodes, by the routes there.
 *
 * Those packets get the VNI of remote-node and go to the node their destination is on. What an endpoint sends has its
 * tunnel key already and passes. A packet whose source is not this host's is dropped: the stack must not forward
 * somebody else's traffic under the node's name. Where a policy selects this node, the host's egress policy judges.
 *
 * Fails closed: what is not understood is dropped.
 */
#include <bpfleet/forward.h>
#include <bpfleet/host.h>
#include <bpfleet/vocabulary.h>

static __always_inline bool has_tunnel_key(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key;

	return !bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) ||
	       !bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6);
}

SEC("tc")
int bpfl_to_tun(struct __sk_buff *skb)
{
	struct packet *packet;
	struct address_record *source;
	struct found found = {};
	struct side side = {};
	int reason;

	if (has_tunnel_key(skb))
		return TC_ACT_UNSPEC; /* counted where the key was set */
	packet = packet_begin(HOOK_TO_TUNNEL, DIRECTION_EGRESS);
	if (!packet)
		return TC_ACT_SHOT;
	reason = packet_parse(skb, packet);
	if (reason)
		return drop(skb, packet, reason);
	if (address_is_multicast(&packet->destination))
		return drop(skb, packet, REASON_MULTICAST);
	if (host_policy) {
		const struct node *this_node = node_find();

		if (!this_node)
			return drop(skb, packet, REASON_NO_TUNNEL_DEVICE);
		side_begin(&side, this_node);
	}
	source = address_find(&packet->source);
	packet->source_identity = source ? source->identity : IDENTITY_WORLD;
	if (packet->source_identity != IDENTITY_HOST)
		return drop(skb, packet, REASON_NOT_HOST_SOURCE);
	address_place(&packet->destination, &side.peer);
	packet->destination_identity = side.peer.identity;
	if (side.peer.route != ROUTE_TUNNEL)
		return drop(skb, packet, REASON_UNKNOWN_DESTINATION);
	if (host_policy) {
		reason = host_sends(skb, packet, &found, &side);
		if (reason)
			return drop(skb, packet, reason);
	}
	reason = tunnel_address(skb, IDENTITY_REMOTE_NODE, &side.peer.next_hop);
	if (reason)
		return drop(skb, packet, reason);
	return pass(skb, REASON_TO_TUNNEL);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
