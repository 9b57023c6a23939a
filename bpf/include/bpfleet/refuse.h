/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a workload is told when there is no backend, as if by the frontend: TCP is reset, anything else gets an ICMP port
 * unreachable about its packet. Linux fails a connecting socket, TCP or UDP, by it with ECONNREFUSED, at once. (TCP would
 * take the ICMP error as well, but not while its owner is just in connect(): then it tries again, for a second.)
 */
#pragma once

#include <linux/tcp.h>

#include <bpfleet/answer.h>
#include <bpfleet/service.h>

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
	answer_v4(&answer.ip, packet, &packet->destination, IPPROTO_TCP, sizeof(answer.tcp));
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
	answer_v6(&answer.ip, packet, &packet->destination, IPPROTO_TCP, sizeof(answer.tcp));
	pseudo = bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip.saddr, 2 * sizeof(answer.ip.saddr), 0);
	pseudo = pseudo_sum(sizeof(answer.tcp), IPPROTO_TCP, pseudo);
	header = bpf_csum_diff(NULL, 0, (__be32 *)&answer.tcp, sizeof(answer.tcp), 0);
	return answer_write(skb, &answer, sizeof(answer)) ||
	       reset_checksum(skb, ETH_HLEN + sizeof(answer.ip), pseudo, header);
}

/* Make the answer of the packet. False if there is none to make. */
__noinline bool refusal_write(struct __sk_buff *skb, const struct packet *packet)
{
	long failed;

	if (!packet || packet->part == PART_LATER)
		return false;
	if (packet->protocol == IPPROTO_TCP)
		failed = packet->is_v6 ? reset_v6(skb, packet) : reset_v4(skb, packet);
	else if (packet->is_v6)
		failed = error_v6(skb, packet, &packet->destination, ICMPV6_DEST_UNREACH, ICMPV6_PORT_UNREACHABLE);
	else
		failed = error_v4(skb, packet, &packet->destination, ICMP_DEST_UNREACH, ICMP_PORT_UNREACHABLE);
	return !failed && !macs_swap(skb);
}

/* Count and tell, and answer the workload that sent the packet. */
static __always_inline int refuse(struct __sk_buff *skb, struct packet *packet, int reason,
				  const struct endpoint *endpoint)
{
	drop(skb, packet, reason);
	return refusal_write(skb, packet) ? answer_send(skb, endpoint) : TC_ACT_SHOT;
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
