/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* tc ingress of each underlay device: what the network sends to this host.
 *
 *   - a packet from a blocked network is dropped, unless XDP has seen to that;
 *   - a tunnel packet whose outer source is no member's address, or whose source port is no tunnel device's, is dropped;
 *   - a bare packet with the address of a workload as its source is dropped: workloads' packets travel in the tunnel;
 *   - a packet for others with an address of this host as its source is dropped: forwarded, which the stack does with IPv6,
 *     it would look like what is masqueraded, and get answers let in (host.h) or an identity in the tunnel;
 *   - a packet may come without an Ethernet header (frame.h);
 *   - a frame with a VLAN's tag is its own device's; a priority tag (VLAN 0) is taken off;
 *   - what the host sends to a group or broadcast address that it is in itself, its stack loops back to here: that passes.
 *     Nothing from the network looks so, as only the stack says PACKET_LOOPBACK;
 *   - where a policy selects this node, its ingress policy judges what is for the host itself (host.h), and IP for the
 *     host that is not understood is dropped;
 *   - a packet of an established connection in a tunnel packet may go straight to its workload (direct.h);
 *   - all else passes: what is for others is checked again by bpfl_from_tun and bpfl_to_ep where it reaches a workload.
 */
#include <linux/if_packet.h>

#include <bpfleet/blocked.h>
#include <bpfleet/direct.h>
#include <bpfleet/frame.h>
#include <bpfleet/host.h>
#include <bpfleet/vocabulary.h>

/* The start of a tunnel packet without options. */
struct tunnel_headers {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((packed));

/* Whether this is a tunnel packet, by a look at its outer headers alone: they are most of what arrives. Where the host has
 * no policy nothing else is asked of a member's, whatever else the headers say. `source`: where it says it is from. */
static __always_inline bool is_tunnel_packet(struct __sk_buff *skb, struct address *source)
{
	const struct tunnel_headers *headers = (void *)(long)skb->data;

	if (skb->protocol != bpf_htons(ETH_P_IP) || (void *)(headers + 1) > (void *)(long)skb->data_end)
		return false;
	if (headers->ip.version != 4 || headers->ip.ihl != 5 || headers->ip.protocol != IPPROTO_UDP ||
	    (headers->ip.frag_off & bpf_htons(FRAGMENT_OFFSET_V4 | FRAGMENT_MORE_V4)) ||
	    headers->udp.dest != bpf_htons(tunnel_port) || !is_tunnel_source(headers->udp.source))
		return false;
	address_from_v4(source, headers->ip.saddr);
	return true;
}

/* As deliver_directly, where the agent and the kernel allow it. */
static __always_inline int tunnel_packet_directly(struct __sk_buff *skb)
{
	return direct_delivery && kernel_contexts ? deliver_directly(skb) : -1;
}

/* The stack takes a priority tag (VLAN 0) for none: neither must it be a way around what is asked here. Two are the most
 * that real equipment sends. Returns 0 or the reason to drop. */
static __always_inline int priority_tags_remove(struct __sk_buff *skb)
{
	for (int i = 0; i < 2 && skb->vlan_present && !(skb->vlan_tci & 0x0fff); i++)
		if (bpf_skb_vlan_pop(skb))
			return REASON_REWRITE;
	return skb->vlan_present && !(skb->vlan_tci & 0x0fff) ? REASON_UNSUPPORTED : 0;
}

/* The host's ingress policy, on a packet that may be for the host. Returns 0 or the reason to drop. */
static __always_inline int host_receives(struct __sk_buff *skb, struct packet *packet)
{
	const struct node *this_node = node_find();
	struct found found = {};
	struct side side = {};

	if (!this_node || host_is_link_traffic(packet, DIRECTION_INGRESS))
		return 0;
	side_begin(&side, this_node);
	host_begin(packet, &found, &side, DIRECTION_INGRESS);
	if (host_is_established(skb, packet, &found, &side))
		return 0;
	if (!is_for_host(skb, packet))
		return 0;
	packet->destination_identity = IDENTITY_HOST;
	underlay_place(&packet->flow.source, &side.peer);
	if (host_is_tunnel(packet, side.peer.identity))
		return 0;
	if (packet->kind == PACKET_RELATED)
		underlay_place(&packet->source, &side.peer);
	packet->source_identity = side.peer.identity;
	if (packet->source_identity == IDENTITY_HOST)
		return REASON_SPOOFED_SOURCE;
	return host_admit(skb, packet, &found, &side);
}

SEC("tc")
int bpfl_from_under(struct __sk_buff *skb)
{
	const struct address_record *source;
	struct address tunnel_source;
	struct packet *packet;
	bool has_source;
	int reason, action;

	if (skb->pkt_type == PACKET_LOOPBACK)
		return pass(skb, REASON_UNDERLAY);
	if (!host_policy && !blocked_at_tc && !skb->vlan_present && !frame_is_bare(skb) &&
	    is_tunnel_packet(skb, &tunnel_source)) {
		action = tunnel_packet_directly(skb);
		if (action >= 0)
			return action;
		source = address_find(&tunnel_source);
		if (source && source->identity == IDENTITY_REMOTE_NODE)
			return pass(skb, REASON_UNDERLAY);
	}
	source = NULL;
	packet = packet_begin(HOOK_FROM_UNDERLAY, DIRECTION_INGRESS);
	if (!packet)
		return TC_ACT_SHOT;
	reason = priority_tags_remove(skb);
	if (reason)
		return drop(skb, packet, reason);
	if (frame_is_bare(skb))
		packet->link = 0;
	reason = packet_parse(skb, packet);
	has_source = packet->is_v6 || address_is_v4(&packet->source); /* broken headers may come behind good ones */
	if (blocked_at_tc && has_source && is_blocked(&packet->source)) {
		packet->source_identity = IDENTITY_WORLD;
		return drop(skb, packet, REASON_BLOCKED);
	}
	if (packet->is_v6 != address_is_v4(&packet->source)) /* a mapped one is nobody's */
		source = address_find(&packet->source);
	packet->source_identity = source ? source->identity : IDENTITY_WORLD;
	if (packet->protocol == IPPROTO_UDP && packet->kind != PACKET_FRAGMENT &&
	    packet->flow.destination_port == bpf_htons(tunnel_port)) {
		if (packet->source_identity != IDENTITY_REMOTE_NODE)
			return drop(skb, packet, REASON_UNDERLAY_TUNNEL);
		if (!is_tunnel_source(packet->flow.source_port))
			return drop(skb, packet, REASON_TUNNEL_SOURCE_PORT);
		if (!reason) {
			action = packet->link ? tunnel_packet_directly(skb) : -1;
			return action >= 0 ? action : pass(skb, REASON_UNDERLAY);
		}
	} else if (packet->source_identity >= IDENTITY_LOWEST || packet->source_identity == IDENTITY_WAITING) {
		return drop(skb, packet, REASON_UNDERLAY_WORKLOAD);
	}
	if (packet->source_identity == IDENTITY_HOST && !is_neighbours(&packet->source) && !is_for_host(skb, packet))
		return drop(skb, packet, REASON_SPOOFED_SOURCE);
	if (!host_policy)
		return pass(skb, REASON_UNDERLAY);
	/* Without addresses nobody can say whose it is; the stack takes no such packet either. */
	if (reason)
		reason = reason != REASON_UNSUPPORTED && (!has_source || is_for_host(skb, packet)) ? reason : 0;
	else
		reason = host_receives(skb, packet);
	return reason ? drop(skb, packet, reason) : pass(skb, REASON_UNDERLAY);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
