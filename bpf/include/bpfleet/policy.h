/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Policy: for each identity with an endpoint here, a map of its rules, replaced whole on a change, and all that a change
 * replaces at once (generation.h).
 *
 * An entry is found under up to eight shapes of key: the peer exact or any, times a port, an interval of ports, a
 * protocol, or neither (the levels). Of the entries that match, a deny beats every allow; then the level names the rule,
 * in that order; then, of both peers at one level, the lower id.
 *
 * A *header* entry {POLICY_HEADER, direction, HEADER_DEFAULT, 0} exists iff a policy says something about the direction. Its
 * action and rule_id are what becomes of a packet that no entry matches; `shapes` and `denies` say which shapes of key
 * occur at all and in which there are denies, so that look-ups which cannot matter are skipped and the cost does not
 * depend on the number of rules. No header, or no map: the direction is open.
 *
 * Where CIDRs occur in a direction, {POLICY_HEADER, direction, HEADER_PREFIXES, 0} holds in rule_id the id of a prefix
 * set (prefix_set.h): the peer of an address without identity is then its class. Where ranges or ICMP types occur,
 * {POLICY_HEADER, direction, HEADER_PORTS, 0} holds that of a port set (port_set.h). Nobody else pays for either.
 *
 * Keys with PART_AUDIT are of what would be enforced if audit policies were; the header says whether to ask. What
 * is allowed now and would not be then passes, with the verdict and the rule of the second answer.
 *
 * Port 0 with a protocol means every port of it; protocol 0 means every protocol. ICMP is found by intervals only.
 */
#pragma once

#include <linux/in.h>
#include <linux/in6.h>

#include <bpfleet/base.h>
#include <bpfleet/generation.h>
#include <bpfleet/identity.h>
#include <bpfleet/port_set.h>
#include <bpfleet/prefix_set.h>
#include <bpfleet/reasons.h>

enum policy_peer {
	POLICY_ANY_PEER = 0,
	POLICY_FIRST_CLASS = 0x01000000, /* from here on classes of prefix sets: identities have 24 bits */
	POLICY_HEADER = 0xffffffff,
};

enum policy_action {
	POLICY_ALLOW = 1,
	POLICY_DENY = 2,
};

/* Which header of a direction; in its key in place of the protocol. */
enum policy_header {
	HEADER_DEFAULT = 0,
	HEADER_PREFIXES = 1,
	HEADER_PORTS = 2,
};

/* Beside enum direction in a key. */
enum policy_part {
	PART_RANGE = 2, /* the port is the number of an interval */
	PART_AUDIT = 4, /* of what would be enforced */
};

enum policy_flag {
	POLICY_HAS_PREFIXES = 1,
	POLICY_HAS_PORTS = 2,
	POLICY_HAS_AUDIT = 4,
};

/* The shapes of key: at which level, for this peer, and shifted by SHAPE_ANY_SHIFT for any peer. */
enum policy_shape {
	SHAPE_PEER_PORT = 1,	  /* this peer, protocol and port */
	SHAPE_PEER_RANGE = 2,	  /* this peer, protocol and interval */
	SHAPE_PEER_PROTOCOL = 4,  /* this peer, every port of the protocol */
	SHAPE_PEER = 8,		  /* this peer, every protocol */
	SHAPE_ANY_PORT = 16,	  /* any peer, protocol and port */
	SHAPE_ANY_RANGE = 32,	  /* any peer, protocol and interval */
	SHAPE_ANY_PROTOCOL = 64,  /* any peer, every port of the protocol */
	SHAPE_ANY = 128,	  /* any peer, every protocol */
};

#define SHAPE_ANY_SHIFT 4
#define POLICY_SHAPES_WITH_PORTS (SHAPE_PEER_PORT | SHAPE_ANY_PORT | SHAPE_PEER_RANGE | SHAPE_ANY_RANGE)

struct policy_subject {
	__u32 identity;
};

/* Eight bytes, so that hashing it is one step: the peer first, as it varies most. */
struct policy_key {
	__u32 peer;
	__u8 direction; /* enum direction, with the bits of enum policy_part */
	__u8 protocol;
	__u16 port; /* host byte order */
};

struct policy_entry {
	__u32 rule_id;
	__u8 action;
	__u8 shapes; /* of a header: which shapes of key occur */
	__u8 denies; /* and which of them with a deny */
	__u8 flags;
};

_Static_assert(sizeof(struct policy_key) + sizeof(struct policy_entry) == 16, "an element fills a cache line");

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
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_subject);
	__array(values, struct policy_entries);
} policies SEC(".maps");

/* What a change replaces, until it is in `policies`; otherwise empty. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_subject);
	__array(values, struct policy_entries);
} policies_staged SEC(".maps");

struct judgement {
	__u32 rule_id;
	__u8 verdict;
	__u8 has_ports; /* what is enforced in this direction asks for ports, so a fragment cannot be judged */
	__u8 flags;	/* of the header */
	__u8 zero;
};

struct question {
	__u32 subject;
	__u32 peer;
	__u8 direction;
	__u8 protocol;
	__u16 port; /* host byte order; of ICMP type << 8 | code */
	__u8 has_port; /* `port` is known */
	__u8 state;    /* of the connection's record, as flow, once it is judged */
	__u8 staged;   /* what was staged is in force, see generation.h */
	__u8 zero;
	__u32 flow;
};

/* What is still to be looked up of one direction. */
struct search {
	void *entries;
	struct policy_key key; /* one for all look-ups: each its own would be much of a program's stack */
	__u32 peer;
	__u8 shapes;
	__u8 denies;
	__u8 allowed; /* an allow was found: from here on only denies matter */
};

static __always_inline const struct policy_entry *policy_probe(struct search *search, __u32 peer, __u8 direction,
							       __u8 protocol, __u16 port)
{
	search->key.peer = peer;
	search->key.direction = direction;
	search->key.protocol = protocol;
	search->key.port = port;
	return bpf_map_lookup_elem(search->entries, &search->key);
}

/* One level: the entry of this peer and that of any peer. True: a deny, which is the answer. */
static __always_inline bool policy_level(struct search *search, __u8 shape, __u8 direction, __u8 protocol, __u16 port,
					 struct judgement *judgement)
{
	__u8 shapes = search->allowed ? search->denies : search->shapes;
	const struct policy_entry *found = NULL, *any = NULL;

	if (shapes & shape)
		found = policy_probe(search, search->peer, direction, protocol, port);
	if (shapes & (shape << SHAPE_ANY_SHIFT))
		any = policy_probe(search, POLICY_ANY_PEER, direction, protocol, port);
	if (!found || (any && (any->action > found->action ||
			       (any->action == found->action && any->rule_id < found->rule_id))))
		found = any;
	if (!found || (search->allowed && found->action != POLICY_DENY))
		return false;
	judgement->rule_id = found->rule_id;
	judgement->verdict = found->action == POLICY_DENY ? VERDICT_DENY : VERDICT_ALLOW;
	search->allowed = 1;
	return found->action == POLICY_DENY;
}

/* The class or interval that the sets of a direction hold for the question. False: the set that the header names is not
 * there, which the order of changes rules out; then nobody knows what is denied. */
static __always_inline bool policy_refine(const struct question *question, const struct address *address, __u8 flags,
					  __u8 direction, struct search *search, __u32 *interval)
{
	const struct policy_entry *named;

	if ((flags & POLICY_HAS_PREFIXES) && search->peer == IDENTITY_WORLD) {
		named = policy_probe(search, POLICY_HEADER, direction, HEADER_PREFIXES, 0);
		if (!named || !prefix_set_find(named->rule_id, address, &search->peer))
			return false;
	}
	if ((flags & POLICY_HAS_PORTS) && question->has_port) {
		named = policy_probe(search, POLICY_HEADER, direction, HEADER_PORTS, 0);
		if (!named || !port_set_find(named->rule_id, question->protocol, question->port, interval))
			return false;
	}
	return true;
}

/* What the entries of one direction say, enforced or as they would be. */
static __always_inline void policy_judge_part(void *entries, const struct question *question,
					      const struct address *address, __u8 direction,
					      struct judgement *judgement)
{
	struct search search = { .entries = entries, .peer = question->peer };
	const struct policy_entry *header = policy_probe(&search, POLICY_HEADER, direction, HEADER_DEFAULT, 0);
	__u32 interval = PORT_SET_NONE;
	__u8 protocol = question->protocol;

	judgement->verdict = VERDICT_ALLOW;
	judgement->rule_id = 0;
	judgement->has_ports = 0;
	judgement->flags = 0;
	if (!header)
		return;
	search.shapes = header->shapes;
	search.denies = header->denies;
	judgement->flags = header->flags;
	judgement->rule_id = header->rule_id;
	judgement->has_ports = !!(header->shapes & POLICY_SHAPES_WITH_PORTS);
	if (header->action != POLICY_ALLOW)
		judgement->verdict = VERDICT_DEFAULT_DENY;
	if (!policy_refine(question, address, header->flags, direction, &search, &interval)) {
		judgement->verdict = VERDICT_DEFAULT_DENY;
		return;
	}
	if (question->has_port && question->port && protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6 &&
	    policy_level(&search, SHAPE_PEER_PORT, direction, protocol, question->port, judgement))
		return;
	if (interval != PORT_SET_NONE &&
	    policy_level(&search, SHAPE_PEER_RANGE, direction | PART_RANGE, protocol, interval, judgement))
		return;
	if (policy_level(&search, SHAPE_PEER_PROTOCOL, direction, protocol, 0, judgement))
		return;
	policy_level(&search, SHAPE_PEER, direction, 0, 0, judgement);
}

/* The entries of a subject in the generation that the program goes by, or NULL. */
static __always_inline void *policy_find(const __u32 *subject, bool staged)
{
	void *entries = NULL;

	if (staged)
		entries = bpf_map_lookup_elem(&policies_staged, subject);
	return entries ? entries : bpf_map_lookup_elem(&policies, subject);
}

/* The answer of `subject`'s policy in one direction about a peer at `address`, which counts only if that is the world.
 *
 * Not static: the verifier checks it once by itself, as packet_parse. */
__noinline int policy_judge(const struct question *question, const struct address *address, struct judgement *judgement)
{
	struct judgement part;
	__u32 subject;
	void *entries;

	if (!question || !address || !judgement)
		return 0;
	judgement->verdict = VERDICT_ALLOW;
	judgement->rule_id = 0;
	judgement->has_ports = 0;
	judgement->flags = 0;
	subject = question->subject;
	entries = policy_find(&subject, question->staged);
	if (!entries)
		return 0;
	/* A loop rather than two calls: inlined once, it needs half the stack. */
#pragma clang loop unroll(disable)
	for (__u8 audit = 0; audit <= PART_AUDIT; audit += PART_AUDIT) {
		policy_judge_part(entries, question, address, question->direction | audit, &part);
		if (audit) {
			if (part.verdict != VERDICT_ALLOW) {
				part.verdict = VERDICT_AUDIT;
				part.has_ports = judgement->has_ports;
				*judgement = part;
			}
			break;
		}
		*judgement = part;
		if (part.verdict != VERDICT_ALLOW || !(part.flags & POLICY_HAS_AUDIT))
			break;
	}
	return 0;
}
