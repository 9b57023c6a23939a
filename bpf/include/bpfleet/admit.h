/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One endpoint's (or the host's, see host.h) judgement of one packet: its connection first, its policy where there is none or it is out of date.
 *
 * A hook first calls connection_find. What it found may be enough to pass the packet (admit_established); otherwise
 * the hook finds out the rest about both ends, fills a `side` and asks `admit`.
 *
 * TCP in mid-stream without a record (it was evicted, or bpfleet has just been installed) is judged as new by policy.
 * A SYN+ACK or an echo reply without one is dropped: there is nothing that it could answer.
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/connection.h>
#include <bpfleet/connection_copy.h>
#include <bpfleet/flow.h>
#include <bpfleet/generation.h>
#include <bpfleet/identity.h>
#include <bpfleet/judgement_copy.h>
#include <bpfleet/node.h>
#include <bpfleet/outcome.h>
#include <bpfleet/packet.h>
#include <bpfleet/policy.h>

struct found {
	struct connection *record; /* live, or NULL */
	struct connection_key reverse; /* its key, if the packet is a reply; else the key is the packet's flow */
	struct copy_place copy;
	__u32 now;
	__u8 is_reply;
	__u8 is_translated; /* the flow goes to a frontend, its record or a new one says so */
};

/* The endpoint that judges, and the other end as it is known now. */
struct side {
	struct place peer;
	struct judgement_copy *judged; /* the place of the copy of what is judged; NULL: there is none, or not yet */
	__u32 ifindex;
	__u32 identity;
	__u32 policy_revision;
	__u32 addresses_revision;
	__u8 direction; /* of the packet, seen from the endpoint */
	__u8 staged;	/* of the generation */
	__u8 is_judged; /* what lies there is that copy */
};

/* What is in force, read once and before anything that it stands for; see generation.h and connection.h. */
static __always_inline void side_begin(struct side *side, const struct node *node)
{
	__u32 word = generation_read();

	side->policy_revision = generation_revision(word);
	side->staged = word & GENERATION_STAGED;
	side->addresses_revision = *(const volatile __u32 *)&node->addresses_revision;
}

/* Look for the copy of what the side's policy says about a peer at an address, and if there is none, for a place: the second
 * where only the first has been of use in this tick. By itself for the sake of the stack. */
static __noinline void side_recall(struct side *side, const struct packet *packet, const struct address *peer,
				   __u32 now)
{
	__u64 revisions = revisions_pack(side->policy_revision, side->addresses_revision);
	__u32 asked = judgement_asked(packet, side->direction);
	struct judgement_copy *first = judgement_place(side->ifindex, peer, asked, 0), *second;

	side->judged = first;
	side->is_judged = first && judgement_is(first, side->identity, peer, asked, revisions);
	if (!first || side->is_judged)
		return;
	second = judgement_place(side->ifindex, peer, asked, 1);
	if (!second)
		return;
	side->is_judged = judgement_is(second, side->identity, peer, asked, revisions);
	if (side->is_judged || (first->tick == now && second->tick != now))
		side->judged = second;
}

/* Look where the copy of the packet's connection would be. The sooner, the better. */
static __always_inline void copy_approach(struct packet *packet, __u8 direction, struct found *found)
{
	packet_face(packet, direction);
	copy_locate(packet, connection_now(), &found->copy);
}

/* What admit_established does, by a copy. */
static __always_inline void admit_copied(const struct __sk_buff *skb, const struct connection_copy *copy,
					 struct found *found)
{
	__u32 slot = copy->flow;

	found->is_reply = copy->is_reply;
	found->is_translated = 0;
	flow_add(&slot, copy->is_reply, skb->len);
}

static __always_inline bool connection_probe(struct found *found, const struct connection_key *key)
{
	struct connection *record = connection_look_up(key);

	if (!record || !connection_is_live(record, key->protocol, found->now))
		return false;
	found->record = record;
	return true;
}

/* As a reply, if it is that of a connection which may pass. */
static __always_inline bool connection_find_replied(const struct packet *packet, struct found *found)
{
	connection_reverse(&found->reverse, &packet->flow);
	if (!connection_probe(found, &found->reverse) || (found->record->state & CONNECTION_DENIED)) {
		found->record = NULL;
		return false;
	}
	found->is_reply = 1;
	if (services_at_tc)
		found->is_translated = found->record->translated;
	return true;
}

/* A guess that saves most replies a look-up: services have the lower port, and so has an echo's reply (packet.h). */
static __always_inline bool is_reply_likely(const struct packet *packet)
{
	return bpf_ntohs(packet->flow.source_port) < bpf_ntohs(packet->flow.destination_port);
}

/* The live connection a packet belongs to, as its initiator or as a reply. One that was denied is taken only if the
 * other key has none. A SYN looks for nothing: it is judged, and starts its record over. */
static __always_inline void connection_find(struct packet *packet, __u8 direction, struct found *found)
{
	struct connection *denied;

	found->record = NULL;
	found->is_reply = 0;
	found->is_translated = 0;
	found->now = connection_now();
	packet_face(packet, direction);
	if (packet->kind == PACKET_OPENS || packet->kind == PACKET_UNTRACKED || packet->kind == PACKET_FRAGMENT)
		return;
	if (is_reply_likely(packet) && connection_find_replied(packet, found))
		return;
	if (packet->kind != PACKET_REPLY_ONLY && connection_probe(found, &packet->flow) &&
	    !(found->record->state & CONNECTION_DENIED))
		return;
	denied = found->record;
	connection_reverse(&found->reverse, &packet->flow);
	if (connection_probe(found, &found->reverse) && (!denied || !(found->record->state & CONNECTION_DENIED)))
		found->is_reply = 1;
	else if (denied)
		found->record = denied;
	if (services_at_tc && found->record)
		found->is_translated = found->record->translated;
}

/* What a packet changes in its record. Written only if it differs: an unwritten cache line is shared by all CPUs. */
static __always_inline __u8 connection_next_state(const struct packet *packet, const struct found *found, __u8 state)
{
	if (packet->kind == PACKET_RELATED)
		return state;
	if (found->is_reply && !(packet->tcp_flags & TCP_RST))
		state |= CONNECTION_REPLIED;
	if (packet->tcp_flags & (TCP_FIN | TCP_RST))
		state |= found->is_reply ? CONNECTION_END_RESPONDER : CONNECTION_END_INITIATOR;
	return state;
}

static __always_inline void connection_touch(const struct packet *packet, const struct found *found)
{
	struct connection *record = found->record;
	__u8 state = record->state;
	__u8 next = connection_next_state(packet, found, state);

	if (next != state)
		connection_add_state(record, next);
	if (record->last_seen != found->now) {
		record->last_seen = found->now;
		if (!(state & CONNECTION_DENIED)) /* else the slot may be another's, see denied_again */
			flow_touch(&record->flow, found->now);
	}
}

/* True if the record alone lets the packet pass for this endpoint. */
static __always_inline bool admit_established(struct __sk_buff *skb, const struct packet *packet,
					      const struct found *found, __u32 ifindex, __u64 revisions)
{
	const struct connection *record = found->record;

	if (!record || record->revisions != revisions || record->ifindex != ifindex ||
	    (record->state & CONNECTION_DENIED))
		return false;
	connection_touch(packet, found);
	flow_add(&record->flow, found->is_reply, skb->len);
	copy_write(&found->copy, packet, record, found->is_reply);
	if (packet->part == PART_FIRST)
		packet_remember(skb, packet);
	return true;
}

static __always_inline int judgement_reason(__u8 verdict)
{
	return verdict == VERDICT_DENY ? REASON_DENIED_BY_RULE : REASON_DENIED_BY_DEFAULT;
}

/* Why an admitted packet of a new connection goes on, for its event. */
static __always_inline __u8 admitted_reason(const struct side *side)
{
	bool is_host = side->identity == IDENTITY_HOST;

	if (side->direction == DIRECTION_INGRESS)
		return is_host ? REASON_TO_STACK : REASON_TO_ENDPOINT;
	if (side->peer.route == ROUTE_LOCAL)
		return REASON_TO_ENDPOINT;
	if (side->peer.route == ROUTE_TUNNEL)
		return REASON_TO_TUNNEL;
	return is_host ? REASON_UNDERLAY : REASON_TO_STACK;
}

/* What an endpoint sends to itself is not judged. */
static __always_inline bool side_is_self(const struct side *side)
{
	return side->identity >= IDENTITY_LOWEST && side->peer.route == ROUTE_LOCAL &&
	       next_hop_ifindex(&side->peer.next_hop) == side->ifindex;
}

/* The port that policy judges: that of the connection (`key`, as its initiator sends), or without one the packet's. */
static __always_inline void question_port(struct question *question, const struct packet *packet,
					   const struct connection_key *key)
{
	question->has_port = 1;
	if (has_ports(question->protocol)) {
		question->port = bpf_ntohs(key ? key->destination_port : packet->flow.destination_port);
		question->has_port = key || packet->kind != PACKET_FRAGMENT;
	} else if (question->protocol == IPPROTO_ICMP || question->protocol == IPPROTO_ICMPV6) {
		/* The connections of ICMP are opened by echo requests, and an echo has code 0. */
		if (key)
			question->port = (question->protocol == IPPROTO_ICMP ? ICMP_ECHO : ICMPV6_ECHO_REQUEST) << 8;
		else
			question->port = packet->icmp_type << 8 | packet->icmp_code;
		question->has_port = key || packet->kind != PACKET_FRAGMENT;
	} else {
		question->has_port = 0;
	}
}

/* The other end's address, by the same choice. */
static __always_inline const struct address *judged_address(const struct packet *packet,
							    const struct connection_key *key, __u8 direction)
{
	if (key)
		return direction == DIRECTION_INGRESS ? &key->source : &key->destination;
	return direction == DIRECTION_INGRESS ? &packet->source : &packet->destination;
}

static __always_inline bool judgement_passes(const struct judgement *judgement)
{
	return judgement->verdict == VERDICT_ALLOW || judgement->verdict == VERDICT_AUDIT;
}

/* Write the record of a connection. By itself, so that what it needs of the stack is free again when policy judges. */
static __noinline long connection_put(const struct connection_key *key, const struct found *found,
				      const struct side *side, const struct question *question)
{
	struct connection fresh = {
		.revisions = revisions_pack(side->policy_revision, side->addresses_revision),
		.next_hop = side->peer.next_hop,
		.flow = question->flow,
		.ifindex = side->ifindex,
		.translated = services_at_tc && found->is_translated && key->direction == DIRECTION_EGRESS,
		.last_seen = found->now,
		.peer = question->peer,
		.route = side->peer.route,
		.state = question->state,
	};
	/* What was direct has copies that would let answers pass as they are. */
	const struct connection *before = fresh.translated ? connection_look_up(key) : NULL;
	bool was_direct = before && !before->translated;
	long error = connection_write(key, &fresh);

	if (was_direct)
		copies_forget();
	return error;
}

/* The slot of what was judged, which may be the hinted one. By itself for the sake of the stack, as connection_put. */
static __noinline __u32 flow_judged(const struct question *question, const struct judgement *judgement, __u32 hint,
				    __u32 now)
{
	bool is_egress = question->direction == DIRECTION_EGRESS;
	struct flow_key key = {
		.source_identity = is_egress ? question->subject : question->peer,
		.destination_identity = is_egress ? question->peer : question->subject,
		.rule_id = judgement->rule_id,
		.port = question->has_port ? question->port : 0,
		.protocol = question->protocol,
		.direction = question->direction,
		.verdict = judgement->verdict,
	};
	struct flow *hinted = hint >= FLOW_FIRST ? bpf_map_lookup_elem(&flows, &hint) : NULL;

	if (hinted && flow_is(hinted, &key) && flow_hold(hinted, &key, now))
		return hint;
	return flow_find(&key, now);
}

/* Keep a copy of what was judged. */
static __always_inline void judgement_keep(const struct side *side, const struct packet *packet,
					   const struct question *question, const struct judgement *judgement, __u32 now)
{
	struct judgement_copy *copy = side->judged;

	copy->peer_address = *judged_address(packet, NULL, question->direction);
	copy->revisions = revisions_pack(side->policy_revision, side->addresses_revision);
	copy->subject = question->subject;
	copy->asked = judgement_asked(packet, question->direction);
	copy->rule_id = judgement->rule_id;
	copy->next_hop = judgement_next_hop(&side->peer);
	copy->peer = question->peer;
	copy->route = side->peer.route;
	copy->verdict = judgement->verdict;
	copy->flow = question->flow;
	copy->tick = now;
}

/* Why a record denies, in the packet: what its flow says. False if that flow did not fit, or its slot is another's by
 * now: then policy is asked again. Before connection_touch. */
static __always_inline bool denied_again(struct packet *packet, const struct connection *record, __u32 now)
{
	struct flow *flow;

	if (record->flow < FLOW_FIRST)
		return false;
	flow = bpf_map_lookup_elem(&flows, &record->flow);
	if (!flow || !flow_is_since(flow, record->last_seen, now))
		return false;
	packet->verdict = flow->key.verdict;
	packet->rule_id = flow->key.rule_id;
	return true;
}

/* Returns 0 to let the packet pass, or the reason to drop it. The verdict, its rule and direction are left in the
 * packet; the event of a new connection that passes is written here, that of a drop by drop(). */
static __noinline int admit(struct __sk_buff *skb, struct packet *packet, struct found *found, struct side *side)
{
	const struct connection_key *key = found->is_reply ? &found->reverse : &packet->flow;
	struct connection *record = found->record;
	struct question question = {};
	struct judgement judgement = {};
	bool is_judged;

	packet->direction = side->direction;
	if (side->identity == IDENTITY_WAITING)
		return REASON_WAITING;

	question.subject = side->identity;
	question.peer = side->peer.identity;
	question.direction = side->direction;
	question.protocol = packet->protocol;
	question.staged = side->staged;
	if (record) {
		packet->direction = key->direction;
		if (record->revisions == revisions_pack(side->policy_revision, side->addresses_revision) && record->ifindex == side->ifindex) {
			if (!(record->state & CONNECTION_DENIED) || denied_again(packet, record, found->now)) {
				connection_touch(packet, found);
				flow_add(&record->flow, found->is_reply, skb->len);
				if (record->state & CONNECTION_DENIED)
					return judgement_reason(packet->verdict);
				if (packet->part == PART_FIRST)
					packet_remember(skb, packet);
				return 0;
			}
		}
		question.state = record->state;
		question.direction = key->direction;
		question.protocol = key->protocol;
		/* An error may come from a router: it is the connection's other end that is judged. */
		if (packet->kind == PACKET_RELATED && side->direction == DIRECTION_INGRESS) {
			const struct address_record *peer = address_find(&packet->flow.source);

			question.peer = peer ? peer->identity : IDENTITY_WORLD;
		}
		/* The host's end of it may have an address that is not in `addresses`. */
		if (record->peer == IDENTITY_HOST && question.peer == IDENTITY_WORLD) {
			question.peer = IDENTITY_HOST;
			if (side->direction == DIRECTION_EGRESS)
				packet->destination_identity = IDENTITY_HOST;
		}
	} else if (packet->kind == PACKET_REPLY_ONLY) {
		return REASON_NO_CONNECTION;
	}
	question_port(&question, packet, record ? key : NULL);
	judgement.verdict = VERDICT_ALLOW;
	if (record || question.peer < IDENTITY_LOWEST || !judgement_may_have_copy(packet) || side_is_self(side))
		side->judged = NULL;
	else if (!side->judged)
		side_recall(side, packet, judged_address(packet, NULL, question.direction), found->now);
	is_judged = side->judged && side->is_judged && side->judged->peer == question.peer;
	if (is_judged) {
		judgement.verdict = side->judged->verdict;
		judgement.rule_id = side->judged->rule_id;
	} else if (!side_is_self(side)) {
		policy_judge(&question, judged_address(packet, record ? key : NULL, question.direction), &judgement);
	}
	if (judgement.verdict == VERDICT_AUDIT)
		counter_add(REASON_AUDITED, skb->len);
	packet->verdict = judgement.verdict;
	packet->rule_id = judgement.rule_id;

	if (packet->kind == PACKET_FRAGMENT && (!judgement_passes(&judgement) || judgement.has_ports))
		return REASON_FRAGMENT;
	if (is_judged && side->judged->flow >= FLOW_FIRST && side->judged->tick == found->now) {
		question.flow = side->judged->flow;
	} else {
		question.flow = flow_judged(&question, &judgement, is_judged ? side->judged->flow : 0, found->now);
		if (side->judged)
			judgement_keep(side, packet, &question, &judgement, found->now);
	}
	flow_approach(&question.flow, found->is_reply);
	if (judgement_passes(&judgement))
		question.state &= ~CONNECTION_DENIED;
	else
		question.state |= CONNECTION_DENIED;
	/* A reset opens nothing; an error says nothing about where the connection goes. */
	if (packet->kind != PACKET_RELATED && packet->kind != PACKET_FRAGMENT &&
	    (record || (judgement_passes(&judgement) && packet->kind <= PACKET_OPENS && !(packet->tcp_flags & TCP_RST)))) {
		question.state = connection_next_state(packet, found, question.state);
		if (connection_put(key, found, side, &question))
			return REASON_CONNECTION_INSERT;
	}
	flow_add(&question.flow, found->is_reply, skb->len);
	if (!judgement_passes(&judgement))
		return judgement_reason(judgement.verdict);
	if (packet->kind != PACKET_FRAGMENT && (!record || judgement.verdict == VERDICT_AUDIT))
		event_write(skb, packet, admitted_reason(side));
	if (packet->part == PART_FIRST)
		packet_remember(skb, packet);
	return 0;
}
