/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What an endpoint and its gateway say to each other besides connections. It passes whatever policy says. */
#pragma once

#include <bpfleet/packet.h>

/* Neighbour and router discovery (RFC 4861): with the full hop limit, which no router lets through. */
static __always_inline bool packet_is_neighbour(const struct packet *packet)
{
	return packet->protocol == IPPROTO_ICMPV6 && packet->kind == PACKET_UNTRACKED && packet->icmp_type >= 133 &&
	       packet->icmp_type <= 137 && packet->hop_limit == 255;
}

/* DHCP from a client (RFC 2131 4.1, RFC 8415 7.2) or, reversed, from a server. */
static __always_inline bool packet_is_dhcp(const struct packet *packet, bool from_client)
{
	__be16 client = packet->is_v6 ? bpf_htons(546) : bpf_htons(68);
	__be16 server = packet->is_v6 ? bpf_htons(547) : bpf_htons(67);

	if (packet->protocol != IPPROTO_UDP || packet->kind != PACKET_ANY)
		return false;
	return packet->flow.source_port == (from_client ? client : server) &&
	       packet->flow.destination_port == (from_client ? server : client);
}
