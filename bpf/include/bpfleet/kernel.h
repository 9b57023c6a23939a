/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The kernel's own structures, as far as programs look into them: on kernels that show them (kernel_contexts). The places of
 * the names are the kernel's (BTF).
 */
#pragma once

#include <bpf/bpf_core_read.h>

#include <bpfleet/base.h>

#define CHECKSUM_UNNECESSARY 1
#define CHECKSUM_COMPLETE 2
#define CHECKSUM_PARTIAL 3
#define NETIF_F_GRO (1 << 14) /* of an enum without a name, and so not to be found by it; since 3.10 */

enum xfrm {
	XFRM_POLICY_IN = 0,
	XFRM_POLICY_OUT = 1,
	XFRM_DIRECTIONS = 3,
	XFRM_POLICY_BLOCK = 1,
};

struct netns_xfrm {
	unsigned int policy_count[XFRM_DIRECTIONS * 2];
	__u8 policy_default[XFRM_DIRECTIONS];
} __attribute__((preserve_access_index));

struct net {
	struct netns_xfrm xfrm;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct netdev_rx_queue {
	void *rps_map;
} __attribute__((preserve_access_index));

struct net_device {
	possible_net_t nd_net;
	__u64 features;
	struct netdev_rx_queue *_rx;
	__u8 threaded;
} __attribute__((preserve_access_index));

struct sk_buff {
	struct net_device *dev;
	unsigned char *head;
	unsigned char *data;
	__u16 csum_start; /* from `head` on */
	__u16 csum_offset; /* from there on */
	__u8 ip_summed : 2;
	__u8 l4_hash : 1;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *context) __ksym __weak;

/* Whether this host takes or sends some packets only by IPsec. */
static __always_inline bool host_has_ipsec(struct __sk_buff *skb, enum xfrm direction)
{
	const struct sk_buff *inside = bpf_cast_to_kern_ctx(skb);
	const struct net *net;

	if (!bpf_core_field_exists(struct net, xfrm))
		return false;
	net = inside->dev->nd_net.net;
	return net->xfrm.policy_count[direction] ||
	       net->xfrm.policy_default[direction] == XFRM_POLICY_BLOCK;
}

/* Whether a device has summed up all of the packet: what is put before it would have to be added. */
static __always_inline bool checksum_is_complete(struct __sk_buff *skb)
{
	const struct sk_buff *inside = bpf_cast_to_kern_ctx(skb);

	return BPF_CORE_READ_BITFIELD(inside, ip_summed) == CHECKSUM_COMPLETE;
}

/* Whether what comes by a packet's device, a tunnel's, waits there until a CPU, which it is spread to (RPS), or a thread takes
 * it up; or together with all that this CPU is given by others, as where packets are not put together (gro_cells_receive). */
static __always_inline bool device_has_packets_wait(struct __sk_buff *skb)
{
	const struct sk_buff *inside = bpf_cast_to_kern_ctx(skb);
	const struct net_device *device = inside->dev;

	if (bpf_core_field_exists(struct netdev_rx_queue, rps_map) && device->_rx->rps_map)
		return true;
	if (bpf_core_field_exists(struct net_device, threaded) && BPF_CORE_READ_BITFIELD(device, threaded))
		return true;
	return !(device->features & NETIF_F_GRO);
}
