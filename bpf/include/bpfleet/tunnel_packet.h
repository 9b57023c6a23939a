/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Tunnel packets as programs look at them and make them, instead of the tunnel's device: VXLAN (RFC 7348) in IPv4 without
 * options, with an Ethernet frame inside. */
#pragma once

#include <linux/ip.h>
#include <linux/udp.h>

#include <bpfleet/base.h>

#define VXLAN_HAS_VNI 0x08000000

/* Explicit congestion notification, of the byte of IPv4's type of service (RFC 3168 5). */
enum congestion {
	CONGESTION_CAPABLE = 2,
	CONGESTION_EXPERIENCED = 3,
	CONGESTION_BITS = 3,
};

/* What lies before the inner IP header. */
struct tunnel_start {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
	__be32 flags;
	__be32 vni; /* in its upper 24 bits */
	struct ethhdr inside;
} __attribute__((packed));

/* Bytes of the outer IP packet that are not the inner frame's. */
#define TUNNEL_OVERHEAD (sizeof(struct tunnel_start) - 2 * ETH_HLEN)
