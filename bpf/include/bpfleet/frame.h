/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether what tc sees of a packet at an underlay device begins with its Ethernet header, or with its IP header:
 *
 *   - a device without a link layer (tun, WireGuard, PPP) has only packets that begin so;
 *   - some kernels (6.12, not 6.1 or 6.18) lose the header's length after a generic XDP program that takes packets in
 *     fragments, in the copy that they make for it.
 *
 * Read as a frame such a packet would be nonsense, and nonsense is nobody's.
 */
#pragma once

#include <bpfleet/base.h>

/* Whether the network header is where the packet begins. Not by what the bytes say, which is the sender's choice: the
 * helper reads up to the end of the linear part, so that as many bytes as are seen are there from the network header on
 * only if it is no further than the start. */
static __noinline bool frame_begins_with_ip(struct __sk_buff *skb, __u32 seen)
{
	__u8 last;

	return !bpf_skb_load_bytes_relative(skb, seen - 1, &last, sizeof(last), BPF_HDR_START_NET);
}

/* Only what begins with the nibble of its IP version is looked at closely. */
static __always_inline bool frame_is_bare(struct __sk_buff *skb)
{
	const __u8 *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	__u8 version = skb->protocol == bpf_htons(ETH_P_IPV6) ? 6 : 4;

	if (data + 1 > data_end || *data >> 4 != version)
		return false;
	return frame_begins_with_ip(skb, data_end - data);
}
