/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Balancing at tc: for endpoints' packets to a frontend that passed no hooked socket of the host, as those of virtual
 * machines, of processes outside the host's cgroups, of raw sockets.
 *
 *   balance_out      where a workload's packet comes in: the destination becomes a backend, before policy judges, so that
 *                    policy, connections and events know the backend only. The client's record is marked `translated`.
 *                    An ICMP error about an answer becomes one about the backend's
 *   balance_deliver, balance_back   where an answer goes to the workload: the source becomes the frontend again. An ICMP
 *                    error about a packet to the backend becomes one about that to the frontend
 *   refuse.h         where there is no backend
 *
 * A packet with a good connection record is looked up nowhere; so a flow that was there before its destination became a
 * frontend stays where it is, and packets to backends pay nothing for services.
 *
 * A backend that is no longer listed gets no more packets. Its UDP flows go to another; so do its TCP connections, whose
 * new backend knows nothing of them and resets them, so that the client connects anew.
 *
 * A later fragment is known by its first one (fragment.h), as sent to the frontend; only its address is exchanged. If its
 * first one is not remembered, it is what it looks like, a packet to an address that is nobody's.
 */
#pragma once

#include <bpfleet/admit.h>
#include <bpfleet/forward.h>
#include <bpfleet/service.h>

/* Of this CPU: packets are dealt with one after the other. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct service_work);
} balance_work SEC(".maps");

enum balanced {
	BALANCE_TRANSLATED = -1,
	BALANCE_NONE = 0, /* to no frontend. Above are reasons */
};

/* One end of a packet that is exchanged: which, and what by what. */
struct exchange {
	const struct address *from;
	const struct address *to;
	__be16 from_port;
	__be16 to_port;
	__u32 ip;	 /* offset of the packet's IP header */
	__u32 transport; /* and of what follows it */
	__u8 is_source;
	__u8 is_v6;
	__u8 is_later; /* a later fragment: no transport header */
	__u8 protocol;
};

/* What the exchange adds to a sum over the address, or with the port. IPv4 in its mapped form gives the same sum. */
static __always_inline __u32 exchange_sum(const struct exchange *exchange)
{
	return bpf_csum_diff((__be32 *)exchange->from, sizeof(*exchange->from), (__be32 *)exchange->to,
			     sizeof(*exchange->to), 0);
}

static __always_inline __u32 exchange_sum_ports(const struct exchange *exchange, __u32 sum)
{
	__be32 from = exchange->from_port, to = exchange->to_port;

	return bpf_csum_diff(&from, sizeof(from), &to, sizeof(to), sum);
}


/* `flags` for IPv6, whose header has no checksum that would make up for its address in skb->csum. */
static __always_inline long exchange_address(struct __sk_buff *skb, const struct exchange *exchange, __u32 sum,
					     __u64 flags)
{
	__u32 at = exchange->ip;

	if (exchange->is_v6) {
		at += exchange->is_source ? offsetof(struct ipv6hdr, saddr) : offsetof(struct ipv6hdr, daddr);
		return bpf_skb_store_bytes(skb, at, exchange->to, sizeof(*exchange->to), flags);
	}
	at += exchange->is_source ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr);
	return bpf_l3_csum_replace(skb, exchange->ip + offsetof(struct iphdr, check), 0, sum, 0) ||
	       bpf_skb_store_bytes(skb, at, &exchange->to->words[3], 4, 0);
}

static __always_inline long exchange_port(struct __sk_buff *skb, const struct exchange *exchange)
{
	__u32 at = exchange->transport + (exchange->is_source ? 0 : 2);

	return bpf_skb_store_bytes(skb, at, &exchange->to_port, sizeof(exchange->to_port), 0);
}

static __always_inline __u32 transport_check(const struct exchange *exchange)
{
	return exchange->transport + (exchange->protocol == IPPROTO_TCP ? 16 : 6);
}

/* In a TCP or UDP packet. The kernel keeps skb->csum and an unfinished checksum (CHECKSUM_PARTIAL) right; a UDP checksum
 * of 0 says that there is none, and stays. */
static __always_inline int exchange_end(struct __sk_buff *skb, const struct exchange *exchange)
{
	__u64 flags = exchange->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 check = transport_check(exchange);
	__u32 sum = exchange_sum(exchange);

	if (exchange_address(skb, exchange, sum, BPF_F_RECOMPUTE_CSUM))
		return REASON_REWRITE;
	if (exchange->is_later) /* the checksum, in the first fragment, is over the whole datagram */
		return 0;
	if (bpf_l4_csum_replace(skb, check, 0, sum, BPF_F_PSEUDO_HDR | flags))
		return REASON_REWRITE;
	if (exchange->from_port == exchange->to_port)
		return 0;
	if (bpf_l4_csum_replace(skb, check, exchange->from_port, exchange->to_port, sizeof(__be16) | flags) ||
	    exchange_port(skb, exchange))
		return REASON_REWRITE;
	return 0;
}

/* In the packet that an ICMP error carries, of which the checksum may be cut off; and in the error's own checksum, which
 * is over all of that. */
static __always_inline int exchange_inner(struct __sk_buff *skb, const struct exchange *exchange, __u32 icmp)
{
	__u32 check = transport_check(exchange);
	__u32 sum = exchange_sum(exchange);
	__u32 change = exchange_sum_ports(exchange, exchange->is_v6 ? sum : 0);
	__be16 old = 0;

	if (exchange_address(skb, exchange, sum, 0) || exchange_port(skb, exchange))
		return REASON_REWRITE;
	if (!bpf_skb_load_bytes(skb, check, &old, sizeof(old)) && (old || exchange->protocol == IPPROTO_TCP)) {
		if (bpf_l3_csum_replace(skb, check, 0, exchange_sum_ports(exchange, sum), 0))
			return REASON_REWRITE;
		/* What the addresses add, the checksums of both headers take away again (~ negates a sum), and so for the ports. */
		change = exchange->is_v6 ? 0 : ~sum;
	}
	return bpf_l4_csum_replace(skb, icmp + offsetof(struct icmp_start, checksum), 0, change, 0) ? REASON_REWRITE :
												      0;
}

/* The sender of an error. ICMPv6 has the addresses in its checksum, ICMP has not. */
static __always_inline int exchange_reporter(struct __sk_buff *skb, const struct exchange *exchange)
{
	__u32 sum = exchange_sum(exchange);

	if (exchange_address(skb, exchange, sum, BPF_F_RECOMPUTE_CSUM))
		return REASON_REWRITE;
	if (exchange->is_v6 && bpf_l4_csum_replace(skb, exchange->transport + offsetof(struct icmp_start, checksum), 0,
						   sum, BPF_F_PSEUDO_HDR))
		return REASON_REWRITE;
	return 0;
}

/* An ICMP error about a packet of the flow. `is_source`: to the client, about what it sent, and if the backend itself
 * reports, from that; else of the client, about an answer. */
static __always_inline int balance_error(struct __sk_buff *skb, const struct packet *packet, struct exchange *exchange,
					 bool is_source)
{
	__u32 icmp = packet->transport;
	int reason;

	exchange->is_source = is_source;
	exchange->transport = icmp;
	if (address_equal(is_source ? &packet->source : &packet->destination, exchange->from)) {
		reason = exchange_reporter(skb, exchange);
		if (reason)
			return reason;
	}
	exchange->is_source = !is_source;
	exchange->ip = icmp + sizeof(struct icmp_start);
	exchange->transport = packet->related_transport;
	return exchange_inner(skb, exchange, icmp);
}

/* Give the packet of a translated flow (`opened` is its key, as the client sends to the backend) its frontend back.
 * Returns 0, or the reason to drop: an answer from an address that the client does not know would end its connection,
 * while one that is missing is asked for again, by a packet that makes the record anew. */
__noinline int balance_back(struct __sk_buff *skb, struct packet *packet, const struct connection_key *opened)
{
	const struct translation *frontend;
	struct exchange exchange = {};
	struct connection_key back;

	if (!packet || !opened)
		return REASON_SERVICE_FLOW;
	translation_back(&back, opened, &opened->destination, opened->destination_port);
	frontend = bpf_map_lookup_elem(&translations, &back);
	if (!frontend)
		return REASON_SERVICE_FLOW;
	exchange.ip = ETH_HLEN;
	exchange.from = &opened->destination;
	exchange.from_port = opened->destination_port;
	exchange.to = &frontend->address;
	exchange.to_port = frontend->port;
	exchange.protocol = opened->protocol;
	exchange.is_v6 = packet->is_v6;
	exchange.is_later = packet->part == PART_LATER;
	if (packet->kind == PACKET_RELATED)
		return balance_error(skb, packet, &exchange, true);
	exchange.is_source = 1;
	exchange.transport = packet->transport;
	return exchange_end(skb, &exchange);
}

/* Whether what is delivered answers a flow to a frontend. */
static __always_inline bool balance_answers(const struct found *found)
{
	return services_at_tc && found->is_reply && found->is_translated;
}

/* deliver(); what is only transmitted to a device passes bpfl_to_ep, which gives it its frontend there. */
static __always_inline int balance_deliver(struct __sk_buff *skb, struct packet *packet, const struct found *found,
					   __u32 ifindex, const struct endpoint *endpoint)
{
	if (balance_answers(found) && (endpoint->flags & ENDPOINT_PEER)) {
		int reason = balance_back(skb, packet, &found->reverse);

		if (reason)
			return drop(skb, packet, reason);
	}
	return deliver(skb, packet, ifindex, endpoint);
}

/* Of the client's tuple: neighbouring ports and addresses must be far apart, so high bits are brought down between. */
static __always_inline __u32 balance_hash(const struct connection_key *flow)
{
	__u64 hash = flow->source.halves[0];

	hash = service_mix(hash) ^ flow->source.halves[1];
	hash = service_mix(hash) ^ flow->rest;
	return service_hash(service_mix(hash));
}

/* Whether a packet may be one to a frontend, or an error about an answer: of no connection to its destination itself. */
static __always_inline bool balance_may(const struct packet *packet, const struct found *found)
{
	return (packet->kind <= PACKET_OPENS || packet->kind == PACKET_RELATED) &&
	       (packet->flow.protocol == IPPROTO_TCP || packet->flow.protocol == IPPROTO_UDP) &&
	       (!found->record || (found->record->state & CONNECTION_DENIED));
}

/* A packet's frontend and the backend for it, if it has one; into this CPU's balance_work. The flow has
 * DIRECTION_EGRESS. Returns BALANCE_TRANSLATED, BALANCE_NONE, or a reason. */
__noinline int balance_find(struct __sk_buff *skb, const struct packet *packet)
{
	struct connection_key flow; /* a copy, as in flow_find */
	struct service_work *work;
	const struct service *service;
	const struct translation *known;
	__u32 zero = 0;

	work = bpf_map_lookup_elem(&balance_work, &zero);
	if (!packet || !work)
		return BALANCE_NONE;
	flow = packet->flow;
	if (packet->kind == PACKET_RELATED) {
		known = bpf_map_lookup_elem(&translations, &flow);
		if (!known)
			return BALANCE_NONE;
		work->to = *known;
		return BALANCE_TRANSLATED;
	}
	service = service_find(&flow);
	if (!service)
		return BALANCE_NONE;
	return service_translate(&flow, service, balance_hash(&flow), skb->ifindex, work) ?: BALANCE_TRANSLATED;
}

/* To that backend with the packet, and with what is known of it. Returns 0 or the reason to drop. */
__noinline int balance_forward(struct __sk_buff *skb, struct packet *packet)
{
	struct exchange exchange = {};
	struct service_work *work;
	__u32 zero = 0;
	int reason;

	work = bpf_map_lookup_elem(&balance_work, &zero);
	if (!packet || !work)
		return REASON_SERVICE_FLOW;
	exchange.ip = ETH_HLEN;
	exchange.from = &packet->destination;
	exchange.from_port = packet->flow.destination_port;
	exchange.to = &work->to.address;
	exchange.to_port = work->to.port;
	exchange.transport = packet->transport;
	exchange.protocol = packet->flow.protocol;
	exchange.is_v6 = packet->is_v6;
	exchange.is_later = packet->part == PART_LATER;
	reason = packet->kind == PACKET_RELATED ? balance_error(skb, packet, &exchange, false) :
						  exchange_end(skb, &exchange);
	if (reason)
		return reason;
	packet->frontend = packet->destination;
	packet->frontend_port = packet->flow.destination_port;
	packet->destination = work->to.address;
	packet->flow.destination = work->to.address;
	packet->flow.rest = connection_rest(packet->flow.source_port, work->to.port, packet->flow.protocol, DIRECTION_EGRESS);
	return 0;
}

/* As it was sent, for what its sender is told about it. Not for an ICMP error. Returns 0 or a reason. */
__noinline int balance_undo(struct __sk_buff *skb, const struct packet *packet)
{
	struct exchange exchange = {};

	if (!packet)
		return REASON_SERVICE_FLOW;
	if (!packet->frontend_port || packet->kind == PACKET_RELATED)
		return 0;
	exchange.ip = ETH_HLEN;
	exchange.from = &packet->destination;
	exchange.from_port = packet->flow.destination_port;
	exchange.to = &packet->frontend;
	exchange.to_port = packet->frontend_port;
	exchange.transport = packet->transport;
	exchange.protocol = packet->flow.protocol;
	exchange.is_v6 = packet->is_v6;
	exchange.is_later = packet->part == PART_LATER;
	return exchange_end(skb, &exchange);
}

/* How the client's flow to the backend is answered is as its latest packet was sent: by way of a frontend or not. By the
 * client, that is: another endpoint with its address in a packet, which is dropped later, changes nothing. */
static __always_inline void balance_mark(const struct __sk_buff *skb, struct found *found, bool is_translated)
{
	if (found->is_reply)
		return;
	if (found->record && found->record->ifindex == skb->ifindex && found->record->translated != is_translated) {
		found->record->translated = is_translated;
		copies_forget();
	}
	found->is_translated = is_translated;
}

/* Exchange a frontend for a backend, and find the connection with that. Returns 0 if there is nothing more to it, or a
 * reason: REASON_SERVICE_NO_BACKEND to refuse the packet, any other to drop it. */
static __always_inline int balance_out(struct __sk_buff *skb, struct packet *packet, struct found *found)
{
	int reason;

	if (!services_at_tc)
		return 0;
	if (!balance_may(packet, found)) {
		if (packet->kind != PACKET_RELATED)
			balance_mark(skb, found, false);
		return 0;
	}
	reason = balance_find(skb, packet);
	if (reason == BALANCE_NONE && packet->kind != PACKET_RELATED)
		balance_mark(skb, found, false); /* of a connection that is denied, and may be allowed again by this packet */
	if (reason != BALANCE_TRANSLATED)
		return reason;
	reason = balance_forward(skb, packet);
	if (reason)
		return reason;
	connection_find(packet, DIRECTION_EGRESS, found);
	if (packet->kind != PACKET_RELATED)
		balance_mark(skb, found, true);
	return 0;
}
