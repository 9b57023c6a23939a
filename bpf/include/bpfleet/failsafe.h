/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Ports of the host that no policy can close (Cluster.failsafe_ports), so that nobody locks himself out.
 *
 * Of an ingress port, what comes to it and what goes out from it passes always, without any record: a full or emptied
 * connection table cannot cut it. Of an egress port, what the host sends to it passes always; answers pass by the
 * connection that is recorded then, as "whatever comes from port 53" would be an open door.
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/packet.h>
#include <bpfleet/reasons.h>

struct failsafe_key {
	__u16 port; /* host byte order */
	__u8 protocol;
	__u8 direction;
};

struct failsafe {
	__u32 listed; /* 1 */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct failsafe_key);
	__type(value, struct failsafe);
} failsafe SEC(".maps");

static __always_inline bool failsafe_lists(__be16 port, __u8 protocol, __u8 direction)
{
	struct failsafe_key key = {
		.port = bpf_ntohs(port),
		.protocol = protocol,
		.direction = direction,
	};

	return bpf_map_lookup_elem(&failsafe, &key);
}

/* Traffic of one of the host's own failsafe ports, either way; also an ICMP error about it. */
static __always_inline bool failsafe_inbound(const struct packet *packet, __u8 direction)
{
	const struct connection_key *flow = &packet->flow;

	if (!has_ports(flow->protocol))
		return false;
	return failsafe_lists(direction == DIRECTION_INGRESS ? flow->destination_port : flow->source_port,
			      flow->protocol, DIRECTION_INGRESS);
}

/* What the host sends to a port that it may always reach. */
static __always_inline bool failsafe_outbound(const struct packet *packet, __u8 direction)
{
	return direction == DIRECTION_EGRESS && has_ports(packet->flow.protocol) &&
	       failsafe_lists(packet->flow.destination_port, packet->flow.protocol, DIRECTION_EGRESS);
}
