/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Checksums that a device is to finish (CHECKSUM_PARTIAL) write into a packet that has been judged. Stacks name the place of
 * the transport's checksum. Who sends raw packets, or for a virtual machine, names any place behind the IP header, as of
 * virtio's header: on a port, so that the packet arrives at another one than policy was asked about.
 *
 * A place that no port and no flag has is the sender's business: what it has encapsulated has a checksum of its own.
 */
#pragma once

#include <bpfleet/kernel.h>
#include <bpfleet/packet.h>

/* Of what packet_parse has taken for whole: whether a device will write over what policy goes by. */
static __always_inline bool is_unfinished_elsewhere(struct __sk_buff *skb, const struct packet *packet)
{
	const struct sk_buff *inside;
	__s32 place, checksum, size;

	if (!kernel_contexts || packet->part == PART_LATER)
		return false;
	inside = bpf_cast_to_kern_ctx(skb);
	if (BPF_CORE_READ_BITFIELD(inside, ip_summed) != CHECKSUM_PARTIAL)
		return false;
	switch (packet->protocol) {
	case IPPROTO_TCP:
		checksum = 16;
		size = 20;
		break;
	case IPPROTO_UDP:
		checksum = 6;
		size = 8;
		break;
	case IPPROTO_SCTP:
		checksum = 8;
		size = 12;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		checksum = 2;
		size = sizeof(struct icmp_start);
		break;
	default: /* has no header that is looked at */
		checksum = 0;
		size = 0;
		break;
	}
	place = (inside->csum_start + inside->csum_offset) - (__s32)((__u64)inside->data - (__u64)inside->head) -
		packet->transport;
	return place < size && place != checksum;
}
