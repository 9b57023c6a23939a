/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that go from the underlay device straight to their workload, without the host's IP stack, its UDP and the
 * tunnel's device.
 *
 * The long way comes first: only what a copy of the connection (connection_copy.h) lets pass goes directly, and a copy
 * counts for a tick, after which the next packet is carried by the stack again. So whatever the stack has against a member's
 * packets, a filter or a device that is down, ends the flow within a tick. What it decides by packet is looked at here:
 *   - IPsec: nothing goes directly while the host has policies for what it receives;
 *   - reverse paths: the agent sets direct_delivery only on nodes with one underlay device;
 *   - all that the headers say, and what the tunnel's device says of them (RFC 7348, and RFC 6040 of congestion). What is
 *     in any way unusual goes the long way.
 *
 * No packet overtakes another one of its flow. What the kernel has put together from several (gso_size) has to go the long
 * way, as nothing here could tell the kernel that it is in no tunnel any more, and so has what was marked on the way, and
 * what the sender has taken apart; all that comes behind it on this CPU does so until the tick is over. Behind a FIN or
 * a reset only acknowledgements come. What is on the long way when a tick begins is in one queue with the packet that
 * makes the copy, which the CPU serves in turn with the underlay's: it is overtaken only where that queue grows longer than
 * what is served at once, on a CPU that has more to do than it can, and takes more in at once than 64 packets (several queues
 * of the device, or net.core.dev_weight). Where it would wait in one more queue, of a CPU or a thread, nothing goes directly
 * (device_has_packets_wait).
 */
#pragma once

#include <bpfleet/admit.h>
#include <bpfleet/forward.h>
#include <bpfleet/kernel.h>
#include <bpfleet/sound.h>
#include <bpfleet/tunnel_packet.h>

/* What lies between the outer Ethernet header and the inner IPv4 header's third byte, where the outer one has no options. */
struct direct_headers {
	struct iphdr ip;
	struct udphdr udp;
	__be32 flags;
	__be32 vni;
	struct ethhdr ethernet;
	__u8 inner_version;
	__u8 inner_tos;
};

/* Bytes before the inner IP header. */
#define DIRECT_LINK (ETH_HLEN + offsetof(struct direct_headers, inner_version))

/* Whether the outer headers are such that the stack and the tunnel's device would take the packet. `length` is that of the
 * outer IP packet as it arrived. */
static __always_inline bool direct_is_plain(const struct direct_headers *headers, __u32 length)
{
	const __u32 *words = (const __u32 *)&headers->ip;
	__u64 sum = 0;

	for (int word = 0; word < 5; word++)
		sum += words[word];
	return headers->ip.version == 4 && headers->ip.ihl == 5 && header_sum_is_right(sum) &&
	       headers->ip.tot_len == bpf_htons(length) && headers->ip.protocol == IPPROTO_UDP &&
	       !(headers->ip.frag_off & bpf_htons(FRAGMENT_OFFSET_V4 | FRAGMENT_MORE_V4)) &&
	       headers->ip.daddr == node_address.words[3] && headers->udp.dest == bpf_htons(tunnel_port) &&
	       headers->udp.len == bpf_htons(length - sizeof(headers->ip)) && !headers->udp.check &&
	       headers->flags == bpf_htonl(VXLAN_HAS_VNI) && !(headers->vni & bpf_htonl(0xff)) &&
	       headers->ethernet.h_proto == bpf_htons(ETH_P_IP);
}

/* Whether the tunnel's device would change nothing inside: what a network on the way has said of congestion it takes over,
 * or drops the packet for it (RFC 6040 4.2). */
static __always_inline bool direct_is_unmarked(const struct direct_headers *headers)
{
	__u8 congestion = headers->ip.tos & CONGESTION_BITS;

	return !congestion || congestion == (headers->inner_tos & CONGESTION_BITS);
}

/* Take off all that is in front of the inner IP header but one Ethernet header. Where a device, or the kernel as it put
 * packets together, has found checksums right, these are the outer one, which is none, and perhaps the inner one: the helper
 * by itself would forget both. */
static __always_inline bool direct_uncover(struct __sk_buff *skb)
{
	const struct sk_buff *inside = bpf_cast_to_kern_ctx(skb);
	bool is_right = BPF_CORE_READ_BITFIELD(inside, ip_summed) == CHECKSUM_UNNECESSARY;

	if (bpf_skb_adjust_room(skb, ETH_HLEN - (__s32)DIRECT_LINK, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		return false;
	if (is_right)
		bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	return true;
}

/* Deliver a tunnel packet whose source port has been looked at. Who sent it need not be: its copy names the member, and is
 * out of date as soon as any address changes. Returns what to do with the packet, or -1: it has to go the long way, and is
 * as it was. */
static __noinline int deliver_directly(struct __sk_buff *skb)
{
	const struct direct_headers *headers = (void *)(long)skb->data + ETH_HLEN;
	struct connection_copy *copy;
	const struct endpoint *receiver;
	const struct node *this_node;
	struct address member;
	struct packet *packet;
	struct found found = {};
	struct side side = {};
	__u32 length = skb->len, vni;
	bool is_unmarked;

	if (skb->pkt_type != 0 /* PACKET_HOST */ || skb->protocol != bpf_htons(ETH_P_IP) ||
	    (void *)(headers + 1) > (void *)(long)skb->data_end || !direct_is_plain(headers, length - ETH_HLEN) ||
	    host_has_ipsec(skb, XFRM_POLICY_IN))
		return -1;
	vni = bpf_ntohl(headers->vni) >> 8;
	is_unmarked = direct_is_unmarked(headers);
	address_from_v4(&member, headers->ip.saddr);
	packet = packet_begin(HOOK_FROM_TUNNEL, DIRECTION_INGRESS);
	this_node = node_find();
	if (!packet || !this_node)
		return -1;
	packet->link = DIRECT_LINK;
	if (packet_parse(skb, packet))
		return -1;
	packet_face(packet, DIRECTION_INGRESS);
	copy_locate_flow(packet, connection_now(), &found.copy);
	side_begin(&side, this_node);
	copy = copy_look_up(&found.copy, packet, revisions_pack(side.policy_revision, side.addresses_revision));
	if (!copy || copy->peer != vni || !copy_is_from(copy, &member))
		return -1;
	if (skb->gso_size || !is_unmarked || packet->part != PART_WHOLE)
		copy->is_long = 1;
	if (copy->is_long || !copy_may_serve(packet))
		return -1;
	receiver = endpoint_find(copy->ifindex);
	if (!receiver || !(receiver->flags & ENDPOINT_PEER))
		return -1;
	if (!direct_uncover(skb))
		return -1;
	counter_add(REASON_UNDERLAY, length);
	admit_copied(skb, copy, &found);
	return deliver(skb, packet, copy->ifindex, receiver);
}
