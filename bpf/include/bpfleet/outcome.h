/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a packet leaves a hook: counted, and with an event where there is something to tell. */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/counters.h>
#include <bpfleet/events.h>
#include <bpfleet/flow.h>
#include <bpfleet/packet.h>

/* Tell readers what was decided about a packet. Not on the path of an established connection. */
__noinline int event_write(struct __sk_buff *skb, const struct packet *packet, int reason)
{
	__u64 sequence = 0;
	struct event *event;
	bool is_icmp;

	if (!packet)
		return 0;
	event = event_begin(&sequence);
	if (!event)
		return 0;
	is_icmp = packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6;
	event->time_ns = bpf_ktime_get_ns();
	event->source = packet->source;
	event->destination = packet->destination;
	event->rule_id = packet->rule_id;
	event->source_identity = packet->source_identity;
	event->destination_identity = packet->destination_identity;
	event->ifindex = skb->ifindex;
	event->length = skb->len;
	event->source_port = is_icmp ? packet->icmp_type : bpf_ntohs(packet->flow.source_port);
	event->destination_port = is_icmp ? packet->icmp_code : bpf_ntohs(packet->flow.destination_port);
	event->protocol = packet->protocol;
	event->verdict = packet->verdict;
	event->direction = packet->direction;
	event->reason = reason;
	event->tcp_flags = packet->tcp_flags;
	event->hook = packet->hook;
	event->zero = 0;
	event_end(event, sequence);
	return 0;
}

/* Put what was dropped for another reason than policy into the history; admit() does so with what policy judged. */
static __noinline void flow_drop(const struct packet *packet, int reason, __u32 bytes)
{
	struct flow_key key = {
		.source_identity = packet->source_identity,
		.destination_identity = packet->destination_identity,
		.port = packet_port(packet),
		.protocol = packet->protocol,
		.direction = packet->direction,
		.verdict = VERDICT_DROP,
		.reason = reason,
	};
	__u32 slot = flow_find(&key, flow_now());

	flow_add(&slot, false, bytes);
}

/* Count and tell, and drop. Global like packet_parse, so that it is checked once and not at every place it is called. */
__noinline int drop(struct __sk_buff *skb, struct packet *packet, int reason)
{
	if (!packet)
		return TC_ACT_SHOT;
	if (reason != REASON_DENIED_BY_RULE && reason != REASON_DENIED_BY_DEFAULT) {
		packet->verdict = VERDICT_DROP;
		packet->rule_id = 0;
		flow_drop(packet, reason, skb->len);
	}
	counter_add(reason, skb->len);
	event_write(skb, packet, reason);
	return TC_ACT_SHOT;
}

/* Ours come first at a hook. "Unspecified" lets the others there have their say; "ok" would cut them off. */
static __always_inline int pass(struct __sk_buff *skb, int reason)
{
	counter_add(reason, skb->len);
	return TC_ACT_UNSPEC;
}
