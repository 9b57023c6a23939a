/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether what tc ingress of an underlay device sees begins with its Ethernet header.
 *
 * It does not on some kernels (6.12, not 6.1 or 6.18) after a generic XDP program that takes packets in fragments: the
 * copy that the kernel makes for it loses the header's length, so that tc gets the packet from its IP header on. Read as
 * a frame it would be nonsense, and nonsense is nobody's.
 */
#pragma once

#include <bpfleet/base.h>

/* A packet that begins with the nibble of its IP version may be one without, or its receiver's MAC address may begin so:
 * then the header, which the kernel knows the place of, is compared with what is seen. */
static __noinline bool frame_is_bare(struct __sk_buff *skb)
{
	const __u8 *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct {
		__be16 words[ETH_HLEN / 2];
	} seen, header;
	__u8 version = skb->protocol == bpf_htons(ETH_P_IPV6) ? 6 : 4;

	if (data + 1 > data_end || *data >> 4 != version || bpf_skb_load_bytes(skb, 0, &seen, sizeof(seen)))
		return false;
	if (bpf_skb_load_bytes_relative(skb, 0, &header, sizeof(header), BPF_HDR_START_MAC))
		return true;
	for (int i = 0; i < ETH_HLEN / 2; i++)
		if (seen.words[i] != header.words[i])
			return true;
	return false;
}
