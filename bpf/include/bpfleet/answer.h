/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a workload is told about a packet that it sent and that goes no further.
 *
 * The packet itself becomes the answer: cut or lengthened, written over, and sent back to where it came from. Of a packet
 * only its IP header and 8 bytes more are quoted, which hold the ports (RFC 792; as much as receivers look at).
 *
 * There is no limit to how many a second. Each goes to the very endpoint that sent the packet, whose address was checked
 * before, by its own device: one for one, never to anybody else. The limit of RFC 4443 2.4 (f) is for the sake of others.
 */
#pragma once

#include <bpfleet/forward.h>

#define QUOTED_TRANSPORT 8
#define QUOTED_V4 (60 + QUOTED_TRANSPORT) /* at most: with all options */
#define QUOTED_V6 (sizeof(struct ipv6hdr) + QUOTED_TRANSPORT)
#define ANSWER_HOPS 64

static __always_inline __sum16 checksum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The rest of the pseudo header, without the addresses: RFC 9293 3.1, RFC 8200 8.1. */
static __always_inline __u32 pseudo_sum(__u32 length, __u32 protocol, __u32 addresses)
{
	__be32 pseudo[2] = { bpf_htonl(length), bpf_htonl(protocol) };

	return bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), addresses);
}

/* An IP header of the answer, zeroed before; `length` of what follows it. */
static __always_inline void answer_v4(struct iphdr *ip, const struct packet *packet,
				      const struct address *from, __u8 protocol, __u32 length)
{
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(sizeof(*ip) + length);
	ip->ttl = ANSWER_HOPS;
	ip->protocol = protocol;
	ip->saddr = from->words[3];
	ip->daddr = packet->source.words[3];
	ip->check = checksum_fold(bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0));
}

static __always_inline void answer_v6(struct ipv6hdr *ip, const struct packet *packet,
				      const struct address *from, __u8 protocol, __u32 length)
{
	ip->version = 6;
	ip->payload_len = bpf_htons(length);
	ip->nexthdr = protocol;
	ip->hop_limit = ANSWER_HOPS;
	__builtin_memcpy(&ip->saddr, from, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &packet->source, sizeof(ip->daddr));
}

static __always_inline long answer_write(struct __sk_buff *skb, const void *answer, __u32 size)
{
	return bpf_skb_change_tail(skb, ETH_HLEN + size, 0) ||
	       bpf_skb_store_bytes(skb, ETH_HLEN, answer, size, BPF_F_RECOMPUTE_CSUM);
}

/* An ICMP error about the packet, from that address. */
static __always_inline long error_v4(struct __sk_buff *skb, const struct packet *packet, const struct address *from,
				     __u8 type, __u8 code)
{
	struct {
		struct iphdr ip;
		struct icmp_start icmp;
		__u8 quoted[QUOTED_V4];
	} answer = {};
	__u32 quoted = packet->transport + QUOTED_TRANSPORT - ETH_HLEN;

	/* Or clang computes the answer's size beside it, which a verifier before 6.2 does not know to be as bounded. */
	asm volatile("" : "+r"(quoted));
	if (quoted < sizeof(struct iphdr) || quoted > sizeof(answer.quoted) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, answer.quoted, quoted))
		return -1;
	answer_v4(&answer.ip, packet, from, IPPROTO_ICMP, sizeof(answer.icmp) + quoted);
	answer.icmp.type = type;
	answer.icmp.code = code;
	answer.icmp.checksum = checksum_fold(
		bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, sizeof(answer.icmp) + sizeof(answer.quoted), 0));
	return answer_write(skb, &answer, sizeof(answer.ip) + sizeof(answer.icmp) + quoted);
}

/* Where the workload left its UDP checksum to the device (CHECKSUM_PARTIAL, which stays), a device that cannot do it has
 * it written where it was: into what ICMP does not use, as the sum of all from there. In ICMPv6 that comes out right only
 * if the pseudo header is there before. The second call takes it away again where the kernel takes both. */
static __always_inline long unused_checksum(struct __sk_buff *skb, __u32 pseudo)
{
	__u32 at = ETH_HLEN + sizeof(struct ipv6hdr) + offsetof(struct icmp_start, sequence);

	return bpf_l4_csum_replace(skb, at, 0, pseudo, BPF_F_PSEUDO_HDR) || bpf_l4_csum_replace(skb, at, 0, ~pseudo, 0);
}

/* Not for a packet with extension headers: the receiver would have to find its ports behind them. */
static __always_inline long error_v6(struct __sk_buff *skb, const struct packet *packet, const struct address *from,
				     __u8 type, __u8 code)
{
	struct {
		struct ipv6hdr ip;
		struct icmp_start icmp;
		__u8 quoted[QUOTED_V6];
	} answer = {};
	__u32 length = sizeof(answer.icmp) + sizeof(answer.quoted);
	__u32 pseudo, sum;

	if (packet->transport != ETH_HLEN + sizeof(struct ipv6hdr) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, answer.quoted, sizeof(answer.quoted)))
		return -1;
	answer_v6(&answer.ip, packet, from, IPPROTO_ICMPV6, length);
	answer.icmp.type = type;
	answer.icmp.code = code;
	pseudo = bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip.saddr, 2 * sizeof(answer.ip.saddr), 0);
	pseudo = pseudo_sum(length, IPPROTO_ICMPV6, pseudo);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, length, pseudo);
	answer.icmp.checksum = checksum_fold(sum);
	return answer_write(skb, &answer, sizeof(answer)) || unused_checksum(skb, pseudo);
}

/* Back to the workload's own stack, whose frame this was. */
static __always_inline long macs_swap(struct __sk_buff *skb)
{
	struct mac macs[2], swapped[2];

	if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return -1;
	swapped[0] = macs[1];
	swapped[1] = macs[0];
	return bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0);
}

/* Where it came from. To what is no veth it is transmitted, and passes bpfl_to_ep there. */
static __always_inline int answer_send(struct __sk_buff *skb, const struct endpoint *endpoint)
{
	if (endpoint->flags & ENDPOINT_PEER) {
		accept_any_mac(skb);
		return bpf_redirect_peer(skb->ifindex, 0);
	}
	return bpf_redirect(skb->ifindex, 0);
}
