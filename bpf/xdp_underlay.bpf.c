/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* XDP of an underlay device that wants it: packets from blocked networks end here, before the kernel makes anything of
 * them.
 *
 * Everything else goes on to bpfl_from_under, which counts and judges it, also what is not understood here: other
 * protocols, VLAN tags, packets too short for their headers.
 */
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpfleet/blocked.h>
#include <bpfleet/counters.h>
#include <bpfleet/events.h>
#include <bpfleet/identity.h>
#include <bpfleet/vocabulary.h>

struct ends {
	struct address source;
	struct address destination;
	__u8 protocol;
};

/* The addresses of an IPv4 or IPv6 frame; false if it is none. */
static __always_inline bool ends_read(const struct xdp_md *xdp, struct ends *ends)
{
	void *data = (void *)(long)xdp->data, *data_end = (void *)(long)xdp->data_end;
	struct ethhdr *ethernet = data;
	struct {
		__be16 tci;
		__be16 kind;
	} *tag;
	void *next = ethernet + 1;
	__be16 kind;

	if (next > data_end)
		return false;
	kind = ethernet->h_proto;
	/* The stack takes a priority tag (VLAN 0) for none; two, as bpfl_from_under. */
	for (int i = 0; i < 2 && (kind == bpf_htons(ETH_P_8021Q) || kind == bpf_htons(ETH_P_8021AD)); i++) {
		tag = next;
		next = tag + 1;
		if (next > data_end || tag->tci & bpf_htons(0x0fff))
			return false;
		kind = tag->kind;
	}
	if (kind == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = next;

		if ((void *)(ip + 1) > data_end || ip->version != 4)
			return false;
		address_from_v4(&ends->source, ip->saddr);
		address_from_v4(&ends->destination, ip->daddr);
		ends->protocol = ip->protocol;
		return true;
	}
	if (kind == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = next;

		if ((void *)(ip + 1) > data_end || ip->version != 6)
			return false;
		__builtin_memcpy(&ends->source, &ip->saddr, sizeof(ends->source));
		__builtin_memcpy(&ends->destination, &ip->daddr, sizeof(ends->destination));
		ends->protocol = ip->nexthdr;
		return !address_is_v4(&ends->source); /* a mapped one is nobody's, and tc refuses to parse it */
	}
	return false;
}

static __always_inline void tell(const struct xdp_md *xdp, const struct ends *ends, __u32 length)
{
	const struct address_record *source = address_find(&ends->source);
	const struct address_record *destination = address_find(&ends->destination);
	__u64 sequence = 0;
	struct event *event = event_begin(&sequence);

	if (!event)
		return;
	event->time_ns = bpf_ktime_get_ns();
	event->source = ends->source;
	event->destination = ends->destination;
	event->rule_id = 0;
	event->source_identity = source ? source->identity : IDENTITY_WORLD;
	event->destination_identity = destination ? destination->identity : IDENTITY_WORLD;
	event->ifindex = xdp->ingress_ifindex;
	event->length = length;
	event->source_port = 0; /* not looked for: the networks decide, not the ports */
	event->destination_port = 0;
	event->protocol = ends->protocol;
	event->verdict = VERDICT_DROP;
	event->direction = DIRECTION_INGRESS;
	event->reason = REASON_BLOCKED;
	event->tcp_flags = 0;
	event->hook = HOOK_XDP_UNDERLAY;
	event->zero = 0;
	event_end(event, sequence);
}

SEC("xdp.frags")
int bpfl_xdp_under(struct xdp_md *xdp)
{
	struct ends ends = {};
	__u32 length;

	if (!ends_read(xdp, &ends) || !is_blocked(&ends.source))
		return XDP_PASS;
	length = bpf_xdp_get_buff_len(xdp);
	counter_add(REASON_BLOCKED, length);
	tell(xdp, &ends, length);
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
