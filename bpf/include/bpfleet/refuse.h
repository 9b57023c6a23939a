/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a workload is told when there is no backend: ICMP port unreachable, as if from the frontend, about its packet.
 * Linux fails a connecting TCP socket and a connected UDP socket by it with ECONNREFUSED, at once.
 *
 * The packet itself becomes the answer: cut or lengthened, written over, and sent back to where it came from. Only its IP
 * header and 8 bytes more are quoted, which hold the ports and TCP's sequence number (RFC 792; as much as receivers look at).
 */
#pragma once

#include <bpfleet/forward.h>
#include <bpfleet/service.h>

#define QUOTED_TRANSPORT 8
#define QUOTED_V4 (60 + QUOTED_TRANSPORT) /* at most: with all options */
#define QUOTED_V6 (sizeof(struct ipv6hdr) + QUOTED_TRANSPORT)
#define REFUSAL_HOPS 64

static __always_inline __sum16 checksum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline long refusal_v4(struct __sk_buff *skb, const struct packet *packet)
{
	struct {
		struct iphdr ip;
		struct icmp_start icmp;
		__u8 quoted[QUOTED_V4];
	} answer = {};
	__u32 quoted = packet->transport + QUOTED_TRANSPORT - ETH_HLEN;

	if (quoted < sizeof(struct iphdr) || quoted > sizeof(answer.quoted) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, answer.quoted, quoted))
		return -1;
	answer.ip.version = 4;
	answer.ip.ihl = 5;
	answer.ip.tot_len = bpf_htons(sizeof(answer.ip) + sizeof(answer.icmp) + quoted);
	answer.ip.ttl = REFUSAL_HOPS;
	answer.ip.protocol = IPPROTO_ICMP;
	answer.ip.saddr = packet->destination.words[3];
	answer.ip.daddr = packet->source.words[3];
	answer.ip.check = checksum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip, sizeof(answer.ip), 0));
	answer.icmp.type = ICMP_DEST_UNREACH;
	answer.icmp.code = 3; /* port unreachable */
	answer.icmp.checksum = checksum_fold(
		bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, sizeof(answer.icmp) + sizeof(answer.quoted), 0));
	quoted += sizeof(answer.ip) + sizeof(answer.icmp);
	return bpf_skb_change_tail(skb, ETH_HLEN + quoted, 0) ||
	       bpf_skb_store_bytes(skb, ETH_HLEN, &answer, quoted, BPF_F_RECOMPUTE_CSUM);
}

/* Not for a packet with extension headers: the receiver would have to find its ports behind them. */
static __always_inline long refusal_v6(struct __sk_buff *skb, const struct packet *packet)
{
	struct {
		struct ipv6hdr ip;
		struct icmp_start icmp;
		__u8 quoted[QUOTED_V6];
	} answer = {};
	/* The rest of the pseudo header, of which the addresses are at their place: RFC 8200 8.1. */
	__be32 pseudo[2] = { bpf_htonl(sizeof(answer.icmp) + sizeof(answer.quoted)), bpf_htonl(IPPROTO_ICMPV6) };
	__u32 sum;

	if (packet->transport != ETH_HLEN + sizeof(struct ipv6hdr) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, answer.quoted, sizeof(answer.quoted)))
		return -1;
	answer.ip.version = 6;
	answer.ip.payload_len = bpf_htons(sizeof(answer.icmp) + sizeof(answer.quoted));
	answer.ip.nexthdr = IPPROTO_ICMPV6;
	answer.ip.hop_limit = REFUSAL_HOPS;
	__builtin_memcpy(&answer.ip.saddr, &packet->destination, sizeof(answer.ip.saddr));
	__builtin_memcpy(&answer.ip.daddr, &packet->source, sizeof(answer.ip.daddr));
	answer.icmp.type = ICMPV6_DEST_UNREACH;
	answer.icmp.code = 4; /* port unreachable */
	sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), 0);
	answer.icmp.checksum = checksum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip.saddr,
							   2 * sizeof(answer.ip.saddr) + sizeof(answer.icmp) +
								   sizeof(answer.quoted),
							   sum));
	return bpf_skb_change_tail(skb, ETH_HLEN + sizeof(answer), 0) ||
	       bpf_skb_store_bytes(skb, ETH_HLEN, &answer, sizeof(answer), BPF_F_RECOMPUTE_CSUM);
}

/* Make the answer of the packet. False if there is none to make. */
__noinline bool refusal_write(struct __sk_buff *skb, const struct packet *packet)
{
	struct mac macs[2], swapped[2];

	if (!packet || (packet->tcp_flags & TCP_RST) || bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return false;
	swapped[0] = macs[1];
	swapped[1] = macs[0];
	if (packet->is_v6 ? refusal_v6(skb, packet) : refusal_v4(skb, packet))
		return false;
	return !bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0);
}

/* Count and tell, and answer the workload that sent the packet. */
static __always_inline int refuse(struct __sk_buff *skb, struct packet *packet, int reason,
				  const struct endpoint *endpoint)
{
	drop(skb, packet, reason);
	if (!refusal_write(skb, packet))
		return TC_ACT_SHOT;
	if (endpoint->flags & ENDPOINT_PEER) {
		accept_any_mac(skb);
		return bpf_redirect_peer(skb->ifindex, 0);
	}
	return bpf_redirect(skb->ifindex, 0);
}

/* Whether bpfl_to_ep sees such an answer: it goes out where it came in, which nothing else does, and is about a packet to a
 * frontend. */
static __always_inline bool is_refusal(const struct __sk_buff *skb, const struct packet *packet)
{
	struct service_key key = { .address = packet->flow.source };

	if (packet->kind != PACKET_RELATED || skb->ingress_ifindex != skb->ifindex)
		return false;
	key.port = packet->flow.source_port;
	key.protocol = packet->flow.protocol;
	return bpf_map_lookup_elem(&services, &key);
}
