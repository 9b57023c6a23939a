/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Policy: for each identity with an endpoint here, a map of its rules, replaced whole on a change.
 *
 * An entry is found under up to six shapes of key: the peer exact or any, times protocol and port, protocol only, or
 * neither. A *header* entry {POLICY_HEADER, direction, 0, 0} exists iff a policy selects the direction: its rule_id is
 * the default-deny pseudo-rule, its `classes` say which shapes occur at all, so that look-ups which cannot hit are
 * skipped and the cost does not depend on the number of rules. No header, or no map: the direction is open.
 * A deny under any shape beats every allow. Among allows the most specific names the rule: peer before port.
 *
 * Port 0 with a protocol means every port of it; protocol 0 means every protocol. ICMP has no ports here.
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/reasons.h>

enum policy_peer {
	POLICY_ANY_PEER = 0,
	POLICY_HEADER = 0xffffffff, /* never an identity: those have 24 bits */
};

enum policy_action {
	POLICY_ALLOW = 1,
	POLICY_DENY = 2,
};

enum policy_class {
	CLASS_PEER_PORT = 1,	  /* this peer, protocol and port */
	CLASS_PEER_PROTOCOL = 2,  /* this peer, every port of the protocol */
	CLASS_PEER = 4,		  /* this peer, every protocol */
	CLASS_ANY_PORT = 8,	  /* any peer, protocol and port */
	CLASS_ANY_PROTOCOL = 16,  /* any peer, every port of the protocol */
	CLASS_ANY = 32,		  /* any peer, every protocol */
};

struct policy_subject {
	__u32 identity;
};

/* Eight bytes, so that hashing it is one step: the peer first, as it varies most. */
struct policy_key {
	__u32 peer;
	__u8 direction;
	__u8 protocol;
	__u16 port; /* host byte order */
};

struct policy_entry {
	__u32 rule_id;
	__u8 action;
	__u8 classes; /* of a header only */
	__u16 zero;
};

/* The inner map. Its max_entries may differ from map to map, its flags (none) may not. */
struct policy_entries {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct policy_key));
	__uint(value_size, sizeof(struct policy_entry));
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4096);
	__type(key, struct policy_subject);
	__array(values, struct policy_entries);
} policies SEC(".maps");

struct judgement {
	__u32 rule_id;
	__u8 verdict;
	__u8 has_ports; /* entries with ports occur in this direction, so a fragment cannot be judged */
};

static __always_inline const struct policy_entry *policy_probe(void *entries, __u32 peer, __u8 direction,
							       __u8 protocol, __u16 port)
{
	struct policy_key key = {
		.peer = peer,
		.direction = direction,
		.protocol = protocol,
		.port = port,
	};

	return bpf_map_lookup_elem(entries, &key);
}

struct question {
	__u32 subject;
	__u32 peer;
	__u8 direction;
	__u8 protocol;
	__u16 port; /* host byte order */
};

#define POLICY_TRY(class, peer, protocol, port)                                                          \
	if (classes & (class)) {                                                                         \
		const struct policy_entry *entry =                                                       \
			policy_probe(entries, peer, question->direction, protocol, port);                \
		if (entry) {                                                                             \
			if (entry->action == POLICY_DENY) {                                              \
				judgement->verdict = VERDICT_DENY;                                       \
				judgement->rule_id = entry->rule_id;                                     \
				return;                                                                  \
			}                                                                                \
			if (judgement->verdict != VERDICT_ALLOW) {                                       \
				judgement->verdict = VERDICT_ALLOW;                                      \
				judgement->rule_id = entry->rule_id;                                     \
			}                                                                                \
		}                                                                                        \
	}

/* The answer of `subject`'s policy in one direction. */
static __always_inline void policy_judge(const struct question *question, struct judgement *judgement)
{
	const struct policy_entry *header;
	__u32 subject = question->subject;
	__u8 classes;
	void *entries;

	judgement->verdict = VERDICT_ALLOW;
	judgement->rule_id = 0;
	judgement->has_ports = 0;
	entries = bpf_map_lookup_elem(&policies, &subject);
	if (!entries)
		return;
	header = policy_probe(entries, POLICY_HEADER, question->direction, 0, 0);
	if (!header)
		return;
	classes = header->classes;
	judgement->verdict = VERDICT_DEFAULT_DENY;
	judgement->rule_id = header->rule_id;
	judgement->has_ports = !!(classes & (CLASS_PEER_PORT | CLASS_ANY_PORT));

	if (question->port) {
		POLICY_TRY(CLASS_PEER_PORT, question->peer, question->protocol, question->port);
	}
	POLICY_TRY(CLASS_PEER_PROTOCOL, question->peer, question->protocol, 0);
	POLICY_TRY(CLASS_PEER, question->peer, 0, 0);
	if (question->port) {
		POLICY_TRY(CLASS_ANY_PORT, POLICY_ANY_PEER, question->protocol, question->port);
	}
	POLICY_TRY(CLASS_ANY_PROTOCOL, POLICY_ANY_PEER, question->protocol, 0);
	POLICY_TRY(CLASS_ANY, POLICY_ANY_PEER, 0, 0);
}
