/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Services: which frontend stands for which backends, and which flow was given which.
 *
 * A frontend names a list of backends by an id that is derived from the list's content: a changed list is another map
 * under another id. So the count beside the id always fits the list, no reader sees half a change, and a flow that
 * remembers the id knows whether the list is still the one it was chosen from. Lists are sorted by address and port.
 *
 * A flow's translation is two records: what the client sends, to the frontend, has DIRECTION_EGRESS in its key and the
 * backend as its value; what it receives, from the backend, has DIRECTION_INGRESS and the frontend. In both keys the
 * client is the source. A packet's client is its address and port; a socket's is its cookie (socket_client).
 * Records may be evicted: the next packet or datagram to the frontend makes them again, and chooses the same backend
 * as long as the list is the same.
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/connection.h>
#include <bpfleet/identity.h>

struct service_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 zero[5];
};

struct service {
	__u32 backends; /* id of the list, 0: there is none */
	__u32 count;	/* of backends in it */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

struct backend {
	struct address address;
	__be16 port;
	__u8 zero[6];
};

/* The inner map: an array, whose length may differ from list to list. */
struct backend_entries {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_INNER_MAP);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct backend));
};

struct backends_key {
	__u32 id;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct backends_key);
	__array(values, struct backend_entries);
} backends SEC(".maps");

/* The other end of a translated flow: the backend for what is sent, the frontend for what is received. */
struct translation {
	struct address address;
	__be16 port;
	__u16 zero;
	__u32 backends; /* the list that the backend was chosen from */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct connection_key);
	__type(value, struct translation);
} translations SEC(".maps");

/* The frontend that a flow goes to, or NULL. */
static __always_inline const struct service *service_find(const struct connection_key *flow)
{
	struct service_key key = { .address = flow->destination };

	key.port = flow->destination_port;
	key.protocol = flow->protocol;
	return bpf_map_lookup_elem(&services, &key);
}

/* The value's high bits depend on all of it (multiplication by 2^64 over the golden ratio). */
static __always_inline __u32 service_hash(__u64 value)
{
	return value * 0x9e3779b97f4a7c15ULL >> 32;
}

/* One round for a longer key: bits that only the low half has come to bear on the high half of the next. */
static __always_inline __u64 service_mix(__u64 value)
{
	value *= 0x9e3779b97f4a7c15ULL;
	return value ^ value >> 32;
}

#define NOBODY 0	    /* in place of a client's device: sockets reach themselves by loopback */
#define BACKENDS_OF_ONE 64 /* that lie beside each other: an endpoint may be listed with several ports */

static __always_inline bool backend_is_at(const struct backend *backend, __u32 ifindex)
{
	const struct address_record *record = address_find(&backend->address);

	return record && record->ifindex == ifindex;
}

/* Whether the client may have that address: then records may be made for it. */
static __always_inline bool client_is_at(const struct address *address, __u32 client)
{
	const struct address_record *record;

	if (client == NOBODY)
		return true;
	record = address_find(address);
	return record && record->ifindex == client;
}

/* By content, so that the choice is the same when a record was lost. `client` is the device of an endpoint that asks, or
 * NOBODY: it is not given itself, as no stack takes a packet with its own address as the source. */
static __always_inline const struct backend *backend_choose(void *list, const struct service *service, __u32 hash,
							    __u32 client)
{
	__u32 index = (__u64)hash * service->count >> 32;
	const struct backend *backend = bpf_map_lookup_elem(list, &index);

	if (client == NOBODY)
		return backend;
	for (int i = 0; i < BACKENDS_OF_ONE && backend && backend_is_at(backend, client); i++) {
		index = index + 1 < service->count ? index + 1 : 0;
		backend = bpf_map_lookup_elem(list, &index);
	}
	return backend && !backend_is_at(backend, client) ? backend : NULL;
}

#define BACKENDS_HALVINGS 17 /* of a list as long as `services` may count to in practice */

/* Whether a backend is (still) in a list: by halving, as lists are sorted. */
static __always_inline bool backend_is_listed(void *list, const struct service *service,
					      const struct translation *wanted)
{
	__u64 high = bpf_be64_to_cpu(wanted->address.halves[0]), low = bpf_be64_to_cpu(wanted->address.halves[1]);
	__u16 port = bpf_ntohs(wanted->port);
	__u32 from = 0, to = service->count;

	for (int i = 0; i < BACKENDS_HALVINGS && from < to; i++) {
		__u32 middle = from + (to - from) / 2;
		const struct backend *backend = bpf_map_lookup_elem(list, &middle);
		__u64 its_high, its_low;
		__u16 its_port;

		if (!backend)
			return false;
		its_high = bpf_be64_to_cpu(backend->address.halves[0]);
		its_low = bpf_be64_to_cpu(backend->address.halves[1]);
		its_port = bpf_ntohs(backend->port);
		if (its_high == high && its_low == low && its_port == port)
			return true;
		if (its_high < high || (its_high == high && (its_low < low || (its_low == low && its_port < port))))
			from = middle + 1;
		else
			to = middle;
	}
	return false;
}

/* The key of what comes back from the backend, from that of what went to the frontend. */
static __always_inline void translation_back(struct connection_key *back, const struct connection_key *flow,
					     const struct address *backend, __be16 port)
{
	back->source = flow->source;
	back->destination = *backend;
	back->rest = connection_rest(flow->source_port, port, flow->protocol, DIRECTION_INGRESS);
}

/* Where records are put together. The stack of programs for packets has no room for it (balance.h). */
struct service_work {
	struct translation to; /* the backend that was found */
	struct translation frontend;
	struct connection_key back;
};

/* Remember whom the flow's backend, in work->to, stands for. */
static __always_inline int translation_write_back(const struct connection_key *flow, struct service_work *work)
{
	work->frontend.address = flow->destination;
	work->frontend.port = flow->destination_port;
	work->frontend.zero = 0;
	work->frontend.backends = work->to.backends;
	translation_back(&work->back, flow, &work->to.address, work->to.port);
	return bpf_map_update_elem(&translations, &work->back, &work->frontend, BPF_ANY) ? REASON_SERVICE_FLOW : 0;
}

/* The backend that `hash` chooses, into work->to. Returns 0 or a reason; REASON_SERVICE_FLOW leaves a backend there all
 * the same. */
static __always_inline int service_choose(const struct connection_key *flow, const struct service *service, __u32 hash,
					  __u32 client, struct service_work *work)
{
	const struct backend *backend;
	__u32 id = service->backends;
	void *list = bpf_map_lookup_elem(&backends, &id);

	if (!list)
		return REASON_SERVICE_NO_BACKEND;
	backend = backend_choose(list, service, hash, client);
	if (!backend)
		return REASON_SERVICE_NO_BACKEND;
	work->to.address = backend->address;
	work->to.port = backend->port;
	work->to.zero = 0;
	work->to.backends = id;
	return translation_write_back(flow, work);
}

/* The backend of a flow to a service's frontend, into work->to: the one it has, as long as that is one, or a new one,
 * which `hash` chooses and which is remembered. The flow's key has DIRECTION_EGRESS. As service_choose. */
static __noinline int service_translate(const struct connection_key *flow, const struct service *service, __u32 hash,
					__u32 client, struct service_work *work)
{
	const struct translation *known = bpf_map_lookup_elem(&translations, flow), *shown;
	__u32 id = service->backends;
	void *list = NULL;
	int reason;

	if (known) {
		work->to = *known;
		if (work->to.backends == id) {
			translation_back(&work->back, flow, &work->to.address, work->to.port);
			/* Looking keeps it from being evicted first. The client may have used another frontend since. */
			shown = bpf_map_lookup_elem(&translations, &work->back);
			if (shown && shown->port == flow->destination_port &&
			    address_equal(&shown->address, &flow->destination))
				return 0;
			return client_is_at(&flow->source, client) ? translation_write_back(flow, work) :
								     REASON_SPOOFED_SOURCE;
		}
		list = bpf_map_lookup_elem(&backends, &id);
	}
	if (!client_is_at(&flow->source, client))
		return REASON_SPOOFED_SOURCE;
	if (list && backend_is_listed(list, service, &work->to)) {
		work->to.backends = id;
		reason = translation_write_back(flow, work);
	} else {
		reason = service_choose(flow, service, hash, client, work);
	}
	if (reason)
		return reason;
	return bpf_map_update_elem(&translations, flow, &work->to, BPF_ANY) ? REASON_SERVICE_FLOW : 0;
}
