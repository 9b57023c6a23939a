/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where admitted packets go: to an endpoint here, into the tunnel, to the host's stack.
 *
 * Delivery to a veth whose other end is in another namespace is by bpf_redirect_peer, which skips the host's side of
 * it altogether. To any other device a packet is transmitted, and so passes bpfl_to_ep there, where it finds the
 * connection that was just written. There, a MAC that is not known is resolved by the neighbour table.
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/endpoint.h>
#include <bpfleet/identity.h>
#include <bpfleet/node.h>
#include <bpfleet/outcome.h>
#include <bpfleet/packet.h>

/* One hop less, once for each packet that bpfleet routes. Returns 0 or the reason to drop. */
static __always_inline int hop_decrement(struct __sk_buff *skb, const struct packet *packet)
{
	void *data, *data_end;
	struct iphdr *ip;
	__u32 check;
	__u8 left = packet->hop_limit - 1;

	if (packet->hop_limit <= 1)
		return REASON_HOP_LIMIT;
	if (packet->is_v6)
		return bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &left, 1,
					   BPF_F_RECOMPUTE_CSUM) ? REASON_REWRITE : 0;
	data = (void *)(long)skb->data;
	data_end = (void *)(long)skb->data_end;
	ip = data + ETH_HLEN;
	if ((void *)(ip + 1) > data_end) {
		if (bpf_skb_pull_data(skb, ETH_HLEN + sizeof(*ip)))
			return REASON_REWRITE;
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
		ip = data + ETH_HLEN;
		if ((void *)(ip + 1) > data_end)
			return REASON_REWRITE;
	}
	ip->ttl = left;
	/* RFC 1624 for one step of the byte; the sum over the header is as before, so skb->csum stays right. */
	check = ip->check + bpf_htons(0x0100);
	ip->check = check + (check >= 0xffff);
	return 0;
}

/* To the stack of this host or of the endpoint, whatever MAC the frame was sent to. */
static __always_inline void accept_any_mac(struct __sk_buff *skb)
{
	if (skb->pkt_type != 0 /* PACKET_HOST */)
		bpf_skb_change_type(skb, 0);
}

static __always_inline int macs_write(struct __sk_buff *skb, const struct endpoint *endpoint)
{
	struct {
		struct mac destination;
		struct mac source;
	} *macs = (void *)(long)skb->data;

	if ((void *)(macs + 1) > (void *)(long)skb->data_end)
		return REASON_REWRITE;
	macs->destination = endpoint->workload_mac;
	macs->source = endpoint->device_mac;
	return 0;
}

static __always_inline int deliver(struct __sk_buff *skb, struct packet *packet, __u32 ifindex,
				   const struct endpoint *endpoint)
{
	const __u16 *words = (const __u16 *)&endpoint->workload_mac;
	bool is_known = words[0] | words[1] | words[2];

	if (is_known && macs_write(skb, endpoint))
		return drop(skb, packet, REASON_REWRITE);
	if (endpoint->flags & ENDPOINT_PEER) {
		accept_any_mac(skb);
		counter_add(REASON_TO_ENDPOINT, skb->len);
		return bpf_redirect_peer(ifindex, 0);
	}
	/* Counted by bpfl_to_ep. */
	return is_known ? bpf_redirect(ifindex, 0) : bpf_redirect_neigh(ifindex, NULL, 0, 0);
}

/* Tell the tunnel device where to and as whom. Returns 0 or the reason to drop. */
static __always_inline int tunnel_address(struct __sk_buff *skb, __u32 identity, const struct address *remote)
{
	struct bpf_tunnel_key key = { .tunnel_id = identity };
	__u64 flags;

	if (address_is_v4(remote)) {
		key.remote_ipv4 = bpf_ntohl(remote->words[3]);
		key.local_ipv4 = bpf_ntohl(node_address.words[3]);
		flags = BPF_F_ZERO_CSUM_TX;
	} else {
		__builtin_memcpy(key.remote_ipv6, remote, sizeof(*remote));
		/* Of the other family it cannot be the source; then the route chooses. */
		for (int i = 0; i < 4 && node_address.words[2] != bpf_htonl(0x0000ffff); i++)
			key.local_ipv6[i] = node_address.words[i];
		flags = BPF_F_TUNINFO_IPV6;
	}
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags) ? REASON_TUNNEL_KEY : 0;
}

static __always_inline int tunnel_send(struct __sk_buff *skb, struct packet *packet, __u32 identity,
				       const struct address *remote, __u32 tunnel_ifindex)
{
	int reason;

	if (!tunnel_ifindex)
		return drop(skb, packet, REASON_NO_TUNNEL_DEVICE);
	reason = tunnel_address(skb, identity, remote);
	if (reason)
		return drop(skb, packet, reason);
	counter_add(REASON_TO_TUNNEL, skb->len);
	return bpf_redirect(tunnel_ifindex, 0);
}
