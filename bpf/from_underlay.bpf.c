/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* tc ingress of each underlay device: what the network sends to this host.
 *
 *   - a tunnel packet whose outer source is no member's address is dropped;
 *   - a bare packet with the address of a workload as its source is dropped: workloads' packets travel in the tunnel;
 *   - all else passes, also what is not understood: the host's own traffic is not judged here, and its stack refuses
 *     what is broken. bpfl_from_tun and bpfl_to_ep check again what reaches a workload.
 */
#include <bpfleet/identity.h>
#include <bpfleet/outcome.h>
#include <bpfleet/vocabulary.h>

SEC("tc")
int bpfl_from_under(struct __sk_buff *skb)
{
	struct packet packet = { .hook = HOOK_FROM_UNDERLAY, .direction = DIRECTION_INGRESS };
	struct address_record *source;

	if (packet_parse(skb, &packet))
		return pass(skb, REASON_UNDERLAY);
	source = address_find(&packet.source);
	packet.source_identity = source ? source->identity : IDENTITY_WORLD;
	if (packet.protocol == IPPROTO_UDP && packet.kind != PACKET_FRAGMENT &&
	    packet.flow.destination_port == bpf_htons(tunnel_port)) {
		if (packet.source_identity != IDENTITY_REMOTE_NODE)
			return drop(skb, &packet, REASON_UNDERLAY_TUNNEL);
	} else if (packet.source_identity >= IDENTITY_LOWEST || packet.source_identity == IDENTITY_WAITING) {
		return drop(skb, &packet, REASON_UNDERLAY_WORKLOAD);
	}
	return pass(skb, REASON_UNDERLAY);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
