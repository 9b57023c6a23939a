/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* tc egress of each underlay device, where a policy selects this node or packets may go directly: what leaves for the network.
 *
 * Tunnel packets show how those go that are sent directly (direct_send.h). Where a policy selects the node:
 *   - what is not IP, neighbour discovery, DHCP of the host and tunnel packets to members always pass;
 *   - what the host forwards passes; if it leaves with the host's address its connection is recorded, see host.h;
 *   - everything else is the host's own, whatever its source address: the host's egress policy judges.
 *
 * Fails closed for the host's own IP packets. A VLAN-tagged frame belongs to the VLAN's own device and passes.
 */
#include <bpfleet/direct_send.h>
#include <bpfleet/frame.h>
#include <bpfleet/host.h>
#include <bpfleet/vocabulary.h>

SEC("tc")
int bpfl_to_under(struct __sk_buff *skb)
{
	struct packet *packet;
	const struct node *this_node = node_find();
	const struct address_record *source;
	struct found found = {};
	struct side side = {};
	int reason;

	if (direct_delivery)
		direct_path_note(skb);
	if (!host_policy || !this_node)
		return pass(skb, REASON_UNDERLAY);
	packet = packet_begin(HOOK_TO_UNDERLAY, DIRECTION_EGRESS);
	if (!packet)
		return TC_ACT_SHOT;
	if (frame_is_bare(skb))
		packet->link = 0;
	reason = packet_parse(skb, packet);
	if (reason == REASON_UNSUPPORTED)
		return pass(skb, REASON_UNDERLAY);
	source = address_find(&packet->source);
	packet->source_identity = !skb->ingress_ifindex || (source && source->identity == IDENTITY_HOST) ?
		IDENTITY_HOST : IDENTITY_UNKNOWN;
	if (reason)
		return skb->ingress_ifindex ? pass(skb, REASON_UNDERLAY) : drop(skb, packet, reason);
	if (host_is_link_traffic(packet, DIRECTION_EGRESS))
		return pass(skb, REASON_NEIGHBOUR);
	side_begin(&side, this_node);
	underlay_place(&packet->flow.destination, &side.peer);
	if (host_is_tunnel(packet, side.peer.identity))
		return pass(skb, REASON_UNDERLAY);
	if (packet->kind == PACKET_RELATED)
		underlay_place(&packet->destination, &side.peer);
	packet->destination_identity = side.peer.identity;
	reason = host_sends(skb, packet, &found, &side);
	return reason ? drop(skb, packet, reason) : pass(skb, REASON_UNDERLAY);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
