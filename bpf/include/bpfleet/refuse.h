/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a workload is told when there is no backend, as if by the frontend: TCP is reset, anything else gets an ICMP port
 * unreachable about its packet. Linux fails a connecting socket, TCP or UDP, by it with ECONNREFUSED, at once. (TCP would
 * take the ICMP error as well, but not while its owner is just in connect(): then it tries again, for a second.)
 *
 * The packet itself becomes the answer: cut or lengthened, written over, and sent back to where it came from. Of a packet
 * only its IP header and 8 bytes more are quoted, which hold the ports (RFC 792; as much as receivers look at).
 */
#pragma once

#include <linux/tcp.h>

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

/* The rest of the pseudo header, without the addresses: RFC 9293 3.1, RFC 8200 8.1. */
static __always_inline __u32 pseudo_sum(__u32 length, __u32 protocol, __u32 addresses)
{
	__be32 pseudo[2] = { bpf_htonl(length), bpf_htonl(protocol) };

	return bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), addresses);
}

/* An IP header of the answer, zeroed before; `length` of what follows it. */
static __always_inline void answer_v4(struct iphdr *ip, const struct packet *packet, __u8 protocol, __u32 length)
{
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(sizeof(*ip) + length);
	ip->ttl = REFUSAL_HOPS;
	ip->protocol = protocol;
	ip->saddr = packet->destination.words[3];
	ip->daddr = packet->source.words[3];
	ip->check = checksum_fold(bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0));
}

static __always_inline void answer_v6(struct ipv6hdr *ip, const struct packet *packet, __u8 protocol, __u32 length)
{
	ip->version = 6;
	ip->payload_len = bpf_htons(length);
	ip->nexthdr = protocol;
	ip->hop_limit = REFUSAL_HOPS;
	__builtin_memcpy(&ip->saddr, &packet->destination, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &packet->source, sizeof(ip->daddr));
}

static __always_inline long answer_write(struct __sk_buff *skb, const void *answer, __u32 size)
{
	return bpf_skb_change_tail(skb, ETH_HLEN + size, 0) ||
	       bpf_skb_store_bytes(skb, ETH_HLEN, answer, size, BPF_F_RECOMPUTE_CSUM);
}

static __always_inline long unreachable_v4(struct __sk_buff *skb, const struct packet *packet)
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
	answer_v4(&answer.ip, packet, IPPROTO_ICMP, sizeof(answer.icmp) + quoted);
	answer.icmp.type = ICMP_DEST_UNREACH;
	answer.icmp.code = 3; /* port unreachable */
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
static __always_inline long unreachable_v6(struct __sk_buff *skb, const struct packet *packet)
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
	answer_v6(&answer.ip, packet, IPPROTO_ICMPV6, length);
	answer.icmp.type = ICMPV6_DEST_UNREACH;
	answer.icmp.code = 4; /* port unreachable */
	pseudo = bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip.saddr, 2 * sizeof(answer.ip.saddr), 0);
	pseudo = pseudo_sum(length, IPPROTO_ICMPV6, pseudo);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, length, pseudo);
	answer.icmp.checksum = checksum_fold(sum);
	return answer_write(skb, &answer, sizeof(answer)) || unused_checksum(skb, pseudo);
}

/* Of what was sent, as RFC 9293 3.10.7.1 has it. False if nothing is to be said. */
static __always_inline bool reset_header(struct __sk_buff *skb, const struct packet *packet, struct tcphdr *tcp)
{
	struct tcphdr sent;

	if (bpf_skb_load_bytes(skb, packet->transport, &sent, sizeof(sent)))
		return false;
	tcp->source = sent.dest;
	tcp->dest = sent.source;
	tcp->doff = sizeof(*tcp) / 4;
	tcp->rst = 1;
	if (packet->tcp_flags & TCP_ACK) {
		tcp->seq = sent.ack_seq;
	} else {
		tcp->ack = 1;
		tcp->ack_seq = bpf_htonl(bpf_ntohl(sent.seq) + 1); /* of the SYN */
	}
	return (packet->tcp_flags & (TCP_ACK | TCP_SYN)) && !(packet->tcp_flags & TCP_RST);
}

/* The checksum of a header written with 0 there, in two parts: where the workload left its checksum to the device
 * (CHECKSUM_PARTIAL, which stays), the kernel takes only the first. */
static __always_inline long reset_checksum(struct __sk_buff *skb, __u32 at, __u32 pseudo, __u32 header)
{
	at += offsetof(struct tcphdr, check);
	return bpf_l4_csum_replace(skb, at, 0, pseudo, BPF_F_PSEUDO_HDR) || bpf_l4_csum_replace(skb, at, 0, header, 0);
}

static __always_inline long reset_v4(struct __sk_buff *skb, const struct packet *packet)
{
	struct {
		struct iphdr ip;
		struct tcphdr tcp;
	} answer = {};
	__u32 pseudo, header;

	if (!reset_header(skb, packet, &answer.tcp))
		return -1;
	answer_v4(&answer.ip, packet, IPPROTO_TCP, sizeof(answer.tcp));
	pseudo = bpf_csum_diff(NULL, 0, &answer.ip.saddr, 2 * sizeof(answer.ip.saddr), 0);
	pseudo = pseudo_sum(sizeof(answer.tcp), IPPROTO_TCP, pseudo);
	header = bpf_csum_diff(NULL, 0, (__be32 *)&answer.tcp, sizeof(answer.tcp), 0);
	return answer_write(skb, &answer, sizeof(answer)) ||
	       reset_checksum(skb, ETH_HLEN + sizeof(answer.ip), pseudo, header);
}

static __always_inline long reset_v6(struct __sk_buff *skb, const struct packet *packet)
{
	struct {
		struct ipv6hdr ip;
		struct tcphdr tcp;
	} answer = {};
	__u32 pseudo, header;

	if (!reset_header(skb, packet, &answer.tcp))
		return -1;
	answer_v6(&answer.ip, packet, IPPROTO_TCP, sizeof(answer.tcp));
	pseudo = bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip.saddr, 2 * sizeof(answer.ip.saddr), 0);
	pseudo = pseudo_sum(sizeof(answer.tcp), IPPROTO_TCP, pseudo);
	header = bpf_csum_diff(NULL, 0, (__be32 *)&answer.tcp, sizeof(answer.tcp), 0);
	return answer_write(skb, &answer, sizeof(answer)) ||
	       reset_checksum(skb, ETH_HLEN + sizeof(answer.ip), pseudo, header);
}

/* Make the answer of the packet. False if there is none to make. */
__noinline bool refusal_write(struct __sk_buff *skb, const struct packet *packet)
{
	struct mac macs[2], swapped[2];
	long failed;

	if (!packet || packet->part == PART_LATER || bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return false;
	swapped[0] = macs[1];
	swapped[1] = macs[0];
	if (packet->protocol == IPPROTO_TCP)
		failed = packet->is_v6 ? reset_v6(skb, packet) : reset_v4(skb, packet);
	else
		failed = packet->is_v6 ? unreachable_v6(skb, packet) : unreachable_v4(skb, packet);
	return !failed && !bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0);
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

/* Whether bpfl_to_ep sees such an answer: it goes out where it came in, which nothing else does, and is a frontend's. */
static __always_inline bool is_refusal(const struct __sk_buff *skb, const struct packet *packet)
{
	struct service_key key = { .address = packet->flow.source };

	if (skb->ingress_ifindex != skb->ifindex || (packet->kind != PACKET_RELATED && !(packet->tcp_flags & TCP_RST)))
		return false;
	key.port = packet->flow.source_port;
	key.protocol = packet->flow.protocol;
	return bpf_map_lookup_elem(&services, &key);
}
