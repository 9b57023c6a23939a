/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that go from their workload straight to the underlay device, in a tunnel packet made here: without the tunnel's
 * device, the host's routes, its filters and its neighbour table.
 *
 * The long way comes first, and shows how: bpfl_to_under notes what the stack's tunnel packets to each member look like as
 * they leave, by CPU. Only what a copy of the connection (connection_copy.h) lets pass goes like that, and a note counts for
 * a tick, as a copy does. So whatever the stack has against such packets ends the short way within a tick: a filter, which
 * leaves nothing to note; another route or neighbour, noted with the next packet that the stack carries. New IPsec policies
 * count at once.
 *
 * What may differ from one packet to the next is not noted, and so nothing goes directly: marks, priorities, service classes,
 * a ban on fragments. Where packets to one member leave by several ways, as by routes with several next hops, none does, nor
 * where only some get a mark or a class.
 * What is longer than all that the stack has sent whole in the tick goes the long way, and may be taken apart there; then what
 * is long has to begin anew.
 *
 * No packet overtakes another one of its flow: both ways end, within the same call, in the queue of the underlay device that
 * the packet's hash chooses (direct_hash_settle).
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/connection.h>
#include <bpfleet/counters.h>
#include <bpfleet/kernel.h>
#include <bpfleet/packet.h>
#include <bpfleet/reasons.h>
#include <bpfleet/sound.h>
#include <bpfleet/tunnel_packet.h>

enum direct_path_limit {
	DIRECT_PATH_BITS = 10,
	DIRECT_PATH_SPLIT_TICKS = 64,
};

/* How tunnel packets to a member leave. Members that share a place take it from each other. */
struct direct_path {
	__be32 member;
	__u32 tick; /* when one was seen last; 0: never */
	__u32 split_tick; /* when packets were last seen to leave differently within a tick, or as only some may; 0: never */
	__u32 ifindex;
	struct ethhdr ethernet;
	__u16 longest; /* bytes of an IP packet that left whole in this tick, since one was taken apart */
	__u16 next_id;
	__u8 hop_limit;
	__u8 zero[5];
};

_Static_assert(sizeof(struct direct_path) % 8 == 0, "per-CPU values are multiples of 8 bytes");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1 << DIRECT_PATH_BITS);
	__type(key, __u32);
	__type(value, struct direct_path);
} direct_paths SEC(".maps");

static __always_inline struct direct_path *direct_path_find(__be32 member)
{
	__u32 index = member * 0x9e3779b1U >> (32 - DIRECT_PATH_BITS);

	return bpf_map_lookup_elem(&direct_paths, &index);
}

/* Whether a packet is one of this host's tunnel packets, or the first fragment of one. */
static __always_inline bool direct_path_is_for(const struct tunnel_start *start)
{
	return start->ethernet.h_proto == bpf_htons(ETH_P_IP) && start->ip.version == 4 && start->ip.ihl == 5 &&
	       start->ip.protocol == IPPROTO_UDP && start->ip.saddr == node_address.words[3] &&
	       !(start->ip.frag_off & bpf_htons(FRAGMENT_OFFSET_V4)) && start->udp.dest == bpf_htons(tunnel_port) &&
	       is_tunnel_source(start->udp.source);
}

/* Whether it is as all others to that member may be. */
static __always_inline bool direct_path_is_shown_by(struct __sk_buff *skb, const struct tunnel_start *start)
{
	return !(start->ip.tos & ~CONGESTION_BITS) && !start->ip.frag_off && !start->udp.check && !skb->mark &&
	       !skb->priority && !skb->vlan_present && !skb->gso_size;
}

static __always_inline bool direct_path_is(const struct direct_path *path, const struct __sk_buff *skb,
					   const struct tunnel_start *start)
{
	return path->ifindex == skb->ifindex && path->hop_limit == start->ip.ttl &&
	       !__builtin_memcmp(&path->ethernet, &start->ethernet, sizeof(path->ethernet));
}

/* Note how a packet leaves, if it is a tunnel packet that the stack has made. What came from a device and was sent from
 * here says nothing new. */
static __always_inline void direct_path_note(struct __sk_buff *skb)
{
	const struct tunnel_start *start = (void *)(long)skb->data;
	struct direct_path *path;
	__u16 length;
	__u32 now;

	if (skb->ingress_ifindex || skb->protocol != bpf_htons(ETH_P_IP) ||
	    (void *)(start + 1) > (void *)(long)skb->data_end || !direct_path_is_for(start))
		return;
	path = direct_path_find(start->ip.daddr);
	if (!path)
		return;
	now = connection_now();
	if (path->member != start->ip.daddr) {
		path->member = start->ip.daddr;
		path->tick = 0;
		path->split_tick = 0;
	}
	if (start->ip.frag_off & bpf_htons(FRAGMENT_MORE_V4))
		path->longest = 0;
	if (start->ip.tos & ~CONGESTION_BITS || skb->mark)
		path->split_tick = now;
	if (!direct_path_is_shown_by(skb, start))
		return;
	if (!path->tick || !direct_path_is(path, skb, start)) {
		if (path->tick == now)
			path->split_tick = now;
		path->ifindex = skb->ifindex;
		path->ethernet = start->ethernet;
		path->hop_limit = start->ip.ttl;
		path->longest = 0;
	}
	if (path->tick != now) {
		path->tick = now;
		path->longest = 0;
		path->next_id = bpf_get_prandom_u32();
	}
	length = bpf_ntohs(start->ip.tot_len);
	if (path->longest < length)
		path->longest = length;
}

/* How a packet to a member may go, NULL: as the stack says. `length` is that of its outer IP packet, bytes. */
static __always_inline struct direct_path *direct_path_for(struct __sk_buff *skb, __be32 member, __u32 now, __u32 length)
{
	struct direct_path *path = direct_path_find(member);

	if (!path || path->member != member || path->tick != now || length > path->longest)
		return NULL;
	if (path->split_tick && now - path->split_tick < DIRECT_PATH_SPLIT_TICKS)
		return NULL;
	if (skb->gso_size || skb->mark || skb->priority)
		return NULL;
	return path;
}

/* The port that the tunnel's device would send from: a flow keeps it, and so its way through the network. */
static __always_inline __be16 direct_source_port(__u32 hash)
{
	hash ^= hash << 16;
	return bpf_htons(((__u64)hash * (TUNNEL_SOURCE_HIGHEST - TUNNEL_SOURCE_LOWEST) >> 32) + TUNNEL_SOURCE_LOWEST);
}

/* What the outer header says of congestion when the inner one begins with these two bytes (RFC 6040 4.1, as the kernel does
 * it: what the workload's network has marked stays inside). */
static __always_inline __u8 direct_congestion(const __u8 *inner, bool is_v6)
{
	__u8 congestion = (is_v6 ? inner[1] >> 4 : inner[1]) & CONGESTION_BITS;

	return congestion == CONGESTION_EXPERIENCED ? CONGESTION_CAPABLE : congestion;
}

/* Have the device's queue be chosen as on the long way: by what is inside if that has ports, else by the tunnel packet. */
static __always_inline void direct_hash_settle(struct __sk_buff *skb)
{
	const struct sk_buff *inside = bpf_cast_to_kern_ctx(skb);

	if (!BPF_CORE_READ_BITFIELD(inside, l4_hash))
		bpf_set_hash_invalid(skb);
}

/* Send a packet of an established connection to a member, in the tick `now` that its copy counts in. Returns what to do
 * with the packet, or -1: it has to go the long way, and is as it was. */
static __noinline int send_directly(struct __sk_buff *skb, struct packet *packet, __be32 member, __u32 now)
{
	__u32 bytes = skb->len, length = bytes + TUNNEL_OVERHEAD, hash;
	struct direct_path *path = direct_path_for(skb, member, now, length);
	struct iphdr ip = { .version = 4, .ihl = 5, .protocol = IPPROTO_UDP };
	struct udphdr udp = {};
	struct tunnel_start *start;
	const __u8 *inner;

	if (!packet || !path || host_has_ipsec(skb, XFRM_POLICY_OUT) || checksum_is_complete(skb))
		return -1;
	hash = bpf_get_hash_recalc(skb);
	if (!hash || bpf_skb_adjust_room(skb, sizeof(*start) - ETH_HLEN, BPF_ADJ_ROOM_MAC,
					 BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
						 BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN)))
		return -1;
	start = (void *)(long)skb->data;
	inner = (void *)(start + 1);
	if ((void *)(inner + 2) > (void *)(long)skb->data_end) { /* never: these bytes have been written or parsed */
		counter_add(REASON_REWRITE, bytes);
		return TC_ACT_SHOT;
	}
	ip.tos = direct_congestion(inner, packet->is_v6);
	ip.tot_len = bpf_htons(length);
	ip.id = bpf_htons(path->next_id++);
	ip.ttl = path->hop_limit;
	ip.saddr = node_address.words[3];
	ip.daddr = member;
	ip.check = header_sum(&ip);
	udp.source = direct_source_port(hash);
	udp.dest = bpf_htons(tunnel_port);
	udp.len = bpf_htons(length - sizeof(ip));
	start->inside = start->ethernet;
	start->ethernet = path->ethernet;
	start->ip = ip;
	start->udp = udp;
	start->flags = bpf_htonl(VXLAN_HAS_VNI);
	start->vni = bpf_htonl(packet->source_identity << 8);
	direct_hash_settle(skb);
	skb->queue_mapping = 0; /* as in the tunnel's device, which has one queue: else it would choose that of the next */
	counter_add(REASON_TO_TUNNEL, bytes);
	return bpf_redirect(path->ifindex, 0);
}
