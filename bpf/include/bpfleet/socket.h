/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Balancing at the socket: what a process connects or sends to is exchanged before there is a packet, so that packets
 * cost nothing; what it is told about the other end is exchanged back.
 *
 * The programs sit at the root of the host's cgroups, one for each hook and family, and hand their context here. A
 * socket of family IPv6 that talks IPv4 is asked about with mapped addresses, or by the IPv4 hook: both make the same
 * keys.
 *
 *   connect   TCP and connected UDP: a backend by the socket's cookie; remembered only for getpeername and recvmsg
 *   sendmsg   unconnected UDP: as above, and a socket that has sent to a frontend stays with its backend
 *   recvmsg, getpeername   a backend that stood for a frontend is shown as that
 *
 * A connected socket stays with its backend, whatever becomes of it: its packets are the backend's.
 */
#pragma once

#include <linux/errno.h>

#include <bpfleet/base.h>
#include <bpfleet/counters.h>
#include <bpfleet/events.h>
#include <bpfleet/service.h>

/* Where an address has its first half, a socket's key has this: a multicast address is nobody's source. */
#define SOCKET_CLIENT 0xffffffffffffffffULL

static __always_inline void socket_client(struct connection_key *flow, __u64 cookie)
{
	flow->source.halves[0] = SOCKET_CLIENT;
	flow->source.halves[1] = cookie;
}

static __always_inline void socket_read(const struct bpf_sock_addr *context, bool is_v6, struct connection_key *flow,
					__u8 direction)
{
	if (is_v6) {
		flow->destination.words[0] = context->user_ip6[0];
		flow->destination.words[1] = context->user_ip6[1];
		flow->destination.words[2] = context->user_ip6[2];
		flow->destination.words[3] = context->user_ip6[3];
	} else {
		address_from_v4(&flow->destination, context->user_ip4);
	}
	flow->rest = connection_rest(0, context->user_port, context->protocol, direction);
}

static __always_inline void socket_write(struct bpf_sock_addr *context, bool is_v6, const struct translation *to)
{
	if (is_v6) {
		context->user_ip6[0] = to->address.words[0];
		context->user_ip6[1] = to->address.words[1];
		context->user_ip6[2] = to->address.words[2];
		context->user_ip6[3] = to->address.words[3];
	} else {
		context->user_ip4 = to->address.words[3];
	}
	context->user_port = to->port;
}

/* Nobody else would tell: no packet is sent. */
static __always_inline void socket_event(const struct connection_key *flow, int reason)
{
	__u64 sequence = 0;
	struct event *event = event_begin(&sequence);
	struct address none = {};

	if (!event)
		return;
	event->time_ns = bpf_ktime_get_ns();
	event->source = none;
	event->destination = flow->destination;
	event->rule_id = 0;
	event->source_identity = 0;
	event->destination_identity = 0;
	event->ifindex = 0;
	event->length = 0;
	event->source_port = 0;
	event->destination_port = bpf_ntohs(flow->destination_port);
	event->protocol = flow->protocol;
	event->verdict = VERDICT_DROP;
	event->direction = DIRECTION_EGRESS;
	event->reason = reason;
	event->tcp_flags = 0;
	event->hook = HOOK_SOCKET;
	event->zero = 0;
	event_end(event, sequence);
}

/* connect (`once`: the socket asks no more) and sendmsg. Answers 1 to go on; 0, with the error set, to refuse. */
static __always_inline int socket_to_backend(struct bpf_sock_addr *context, bool is_v6, bool once)
{
	struct connection_key flow = {};
	const struct service *service;
	struct service_work work = {};
	__u64 cookie;
	int reason;

	socket_read(context, is_v6, &flow, DIRECTION_EGRESS);
	service = service_find(&flow);
	if (!service)
		return 1;
	cookie = bpf_get_socket_cookie(context);
	socket_client(&flow, cookie);
	reason = once ? service_choose(&flow, service, service_hash(cookie), NOBODY, &work) :
			service_translate(&flow, service, service_hash(cookie), NOBODY, &work);
	if (reason == REASON_SERVICE_NO_BACKEND) {
		counter_add(reason, 0);
		socket_event(&flow, reason);
		bpf_set_retval(-ECONNREFUSED);
		return 0;
	}
	/* Without a record the process sees the backend's address, no worse. */
	counter_add(reason ? reason : REASON_SERVICE, 0);
	socket_write(context, is_v6, &work.to);
	return 1;
}

/* recvmsg and getpeername, which cannot refuse. */
static __always_inline int socket_to_frontend(struct bpf_sock_addr *context, bool is_v6)
{
	struct connection_key flow = {};
	const struct translation *frontend;

	socket_read(context, is_v6, &flow, DIRECTION_INGRESS);
	socket_client(&flow, bpf_get_socket_cookie(context));
	frontend = bpf_map_lookup_elem(&translations, &flow);
	if (frontend)
		socket_write(context, is_v6, frontend);
	return 1;
}
