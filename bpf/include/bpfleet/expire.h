/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a workload is told whose packet has no hop left where bpfleet routes it: ICMP time exceeded from its gateway (RFC
 * 792, RFC 4443 3.3), about the packet as it was sent. So traceroute shows this hop, and a loop shows itself.
 *
 * Nothing is said about ICMP errors, later fragments, and what was sent to a group of the link (RFC 1122 3.2.2, RFC 4443
 * 2.4 e); groups' addresses come no way near. Nor about IPv6 with extension headers: see answer.h.
 *
 * TCP's unfinished checksum (CHECKSUM_PARTIAL) stays with the packet, for a place inside what is quoted. A device that
 * finishes checksums before it is given a packet writes there, and its workload takes no notice of the answer.
 */
#pragma once

#include <bpfleet/answer.h>
#include <bpfleet/balance.h>
#include <bpfleet/gateway.h>

static __always_inline void gateway_address(const struct packet *packet, struct address *gateway)
{
	for (int i = 0; i < 4; i++)
		gateway->words[i] = packet->is_v6 ? gateway_v6.words[i] : gateway_v4.words[i];
}

/* Whether a packet may be the reason of an ICMP error. `group`: the frame went to a group of the link. */
static __always_inline bool may_be_reported(const struct packet *packet, bool group)
{
	bool is_icmp = packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6;

	return !group && packet->part != PART_LATER && !(is_icmp && icmp_is_report(packet->icmp_type, packet->is_v6));
}

/* Make the answer of the packet. False if there is none to make. */
__noinline bool expiry_write(struct __sk_buff *skb, const struct packet *packet)
{
	struct address gateway;
	struct mac to;
	long failed;

	if (!packet || bpf_skb_load_bytes(skb, 0, &to, sizeof(to)) || !may_be_reported(packet, to.bytes[0] & 1))
		return false;
	gateway_address(packet, &gateway);
	failed = packet->is_v6 ? error_v6(skb, packet, &gateway, ICMPV6_TIME_EXCEEDED, 0) :
				 error_v4(skb, packet, &gateway, ICMP_TIME_EXCEEDED, 0);
	return !failed && !macs_swap(skb);
}

/* Count and tell, and answer the workload that sent the packet. */
static __always_inline int expire(struct __sk_buff *skb, struct packet *packet, const struct endpoint *endpoint)
{
	drop(skb, packet, REASON_HOP_LIMIT);
	if ((services_at_tc && balance_undo(skb, packet)) || !expiry_write(skb, packet))
		return TC_ACT_SHOT;
	return answer_send(skb, endpoint);
}

/* Whether bpfl_to_ep sees such an answer: a gateway's, that goes out where it came in. */
static __always_inline bool is_expiry(const struct __sk_buff *skb, const struct packet *packet)
{
	struct address gateway;

	if (skb->ingress_ifindex != skb->ifindex ||
	    packet->protocol != (packet->is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) ||
	    packet->icmp_type != (packet->is_v6 ? ICMPV6_TIME_EXCEEDED : ICMP_TIME_EXCEEDED))
		return false;
	gateway_address(packet, &gateway);
	return address_equal(&packet->source, &gateway);
}
