/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One packet on its way through a hook: what was parsed from it, and what was found out about it.
 *
 * Parsing follows a cursor (cursor.h). In front of the IP header is an Ethernet header or nothing (frame.h). Loops are
 * bounded by EXTENSIONS_LIMIT. What no stack would take is dropped (sound.h).
 *
 * `flow` is the tuple by which the connection is looked up. It is the packet's own, except:
 *   - an ICMP echo has {identifier, 0} as ports in a request and {0, identifier} in its reply, so that one is the
 *     other's reverse (RFC 792, RFC 4443 4);
 *   - an ICMP error that carries the start of a packet (PACKET_RELATED) has the reverse of that packet's tuple: the
 *     error travels the way that packet's replies do. It counts only if it goes to the sender of that packet;
 *   - a later fragment has the ports of its first one, if that is remembered (fragment.h), and is then like any packet
 *     of that connection. Otherwise (PACKET_FRAGMENT) it has no ports and therefore no connection: it passes only if
 *     policy allows it by entries without ports and there are none with ports in that direction, and is dropped
 *     otherwise. A first fragment has its ports and is like any packet.
 */
#pragma once

#include <stddef.h>

#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpfleet/base.h>
#include <bpfleet/connection.h>
#include <bpfleet/cursor.h>
#include <bpfleet/fragment.h>
#include <bpfleet/reasons.h>
#include <bpfleet/sound.h>

#define EXTENSIONS_LIMIT 6
#define FRAGMENT_OFFSET_V4 0x1fff
#define FRAGMENT_MORE_V4 0x2000
#define FRAGMENT_OFFSET_V6 0xfff8
#define FRAGMENT_MORE_V6 0x0001

/* Message types; the UAPI header that has them needs a C library. RFC 792, RFC 4443. */
enum icmp_type {
	ICMP_ECHOREPLY = 0,
	ICMP_DEST_UNREACH = 3,
	ICMP_SOURCE_QUENCH = 4,
	ICMP_REDIRECT = 5,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
	ICMPV6_DEST_UNREACH = 1,
	ICMPV6_TIME_EXCEEDED = 3,
	ICMPV6_PARAMPROB = 4,
	ICMPV6_ECHO_REQUEST = 128,
	ICMPV6_ROUTER_ADVERTISEMENT = 134,
	ICMPV6_REDIRECT = 137,
	ICMPV6_ECHO_REPLY = 129,
};

enum icmp_code {
	ICMP_PORT_UNREACHABLE = 3,
	ICMPV6_PORT_UNREACHABLE = 4,
};

/* What a packet may do for the connection it belongs to. */
enum packet_kind {
	PACKET_ANY,	   /* may open a connection if there is none; also TCP in mid-stream, after an eviction */
	PACKET_OPENS,	   /* opens one, whatever is there: a TCP SYN */
	PACKET_REPLY_ONLY, /* can only belong to one: SYN+ACK, echo reply */
	PACKET_RELATED,	   /* an ICMP error about a packet of one */
	PACKET_UNTRACKED,  /* has none: other ICMP. Policy judges each packet */
	PACKET_FRAGMENT,   /* later fragment, its first one not remembered: no ports */
};

/* Whether a packet is whole, for what its frame holds. */
enum packet_part {
	PART_WHOLE,
	PART_FIRST, /* first fragment of several */
	PART_LATER, /* no transport header in the frame, whatever is known of it */
};

struct packet {
	struct connection_key flow;
	struct address source;
	struct address destination;
	struct address frontend; /* what it was sent to, if that has been exchanged (balance.h): frontend_port is not 0 */
	__be16 frontend_port;
	__u32 source_identity;
	__u32 destination_identity;
	__u32 rule_id;
	__u32 fragment_id;
	__u16 transport; /* offset of the transport header in the frame */
	__u16 related_transport; /* of PACKET_RELATED: of that of the packet inside */
	__u8 verdict;
	__u8 direction;
	__u8 hook;
	__u8 kind;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 hop_limit;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 is_v6;
	__u8 part;
	__u8 fragment_protocol;
	__u8 link; /* bytes before the IP header: ETH_HLEN, or 0, see frame.h */
};

/* Of this CPU: a program runs to its end before another one does at any tc hook. On the stack it would be a fifth of all
 * there is for a program and everything it calls. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} packet_work SEC(".maps");

/* The packet of this run, zeroed but for where it is. Never NULL, but the verifier does not know that. */
static __always_inline struct packet *packet_begin(__u8 hook, __u8 direction)
{
	__u32 zero = 0;
	struct packet *packet = bpf_map_lookup_elem(&packet_work, &zero);

	if (packet)
		*packet = (struct packet){ .hook = hook, .direction = direction, .link = ETH_HLEN };
	return packet;
}

/* Ports of an echo, so that a reply's are the reverse of its request's. False for other types. */
static __always_inline bool echo_ports(__u8 type, bool is_v6, __be16 identifier, struct connection_key *flow)
{
	__u8 protocol = is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;

	if (type == (is_v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO))
		flow->rest = connection_rest(identifier, 0, protocol, 0);
	else if (type == (is_v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY))
		flow->rest = connection_rest(0, identifier, protocol, 0);
	else
		return false;
	return true;
}

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

struct icmp_start {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 identifier;
	__be16 sequence;
};

static __always_inline bool icmp_is_error(__u8 type, bool is_v6)
{
	if (is_v6) /* RFC 4443 2.1: the high bit is clear */
		return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/* Messages about which no error is sent: RFC 1122 3.2.2, RFC 4443 2.4 (e.1, e.2). */
static __always_inline bool icmp_is_report(__u8 type, bool is_v6)
{
	if (is_v6)
		return type < 128 || type == ICMPV6_REDIRECT;
	return icmp_is_error(type, false) || type == ICMP_SOURCE_QUENCH || type == ICMP_REDIRECT;
}

/* What a walk over IPv6 extension headers found. */
struct extensions {
	__u32 fragment_id;
	__be16 fragment;	/* offset and flags; 0 without a fragment header */
	__u8 protocol;		/* of what follows; before the walk that of the first header */
	__u8 fragment_protocol; /* what the fragment header says of it */
};

/* Walks the extension headers of RFC 8200 4.1 and the authentication header up to the transport's, or to what a later
 * fragment has instead. Returns 0 or a reason.
 *
 * Not static: the verifier checks it once by itself, as packet_parse. */
__noinline int extensions_skip(struct __sk_buff *skb, struct cursor *cursor, struct extensions *found)
{
	struct {
		__u8 next;
		__u8 length;
		__be16 fragment;
	} header;
	__be32 id;
	__u32 size;
	int reason;

	if (!cursor || !found)
		return REASON_TRUNCATED;
	for (int i = 0; i < EXTENSIONS_LIMIT; i++) {
		switch (found->protocol) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
			break;
		default:
			return 0;
		}
		reason = cursor_read(skb, cursor, &header);
		if (reason)
			return reason;
		size = (header.length + 1) * 8;
		if (found->protocol == IPPROTO_AH) {
			size = (header.length + 2) * 4;
		} else if (found->protocol == IPPROTO_FRAGMENT) {
			size = 8;
			if (cursor->left < size || bpf_skb_load_bytes(skb, cursor->offset + 4, &id, sizeof(id)))
				return REASON_TRUNCATED;
			found->fragment = header.fragment;
			found->fragment_id = id;
			found->fragment_protocol = header.next;
		}
		reason = cursor_skip(cursor, size);
		if (reason)
			return reason;
		found->protocol = header.next;
		if (found->fragment & bpf_htons(FRAGMENT_OFFSET_V6))
			return 0;
	}
	return REASON_EXTENSION_HEADERS;
}

/* The packet inside an ICMP error, at the cursor. Only its addresses and first 8 bytes are sure to be there: where its
 * ports are not, the error is judged as ICMP. */
static __always_inline void parse_related(struct __sk_buff *skb, struct packet *packet, struct cursor *cursor)
{
	struct connection_key inner = {};
	struct icmp_start start;
	struct {
		__be16 source;
		__be16 destination;
	} ports;

	if (packet->is_v6) {
		struct extensions extensions = {};
		struct ipv6hdr ip;

		if (cursor_read(skb, cursor, &ip) || cursor_skip(cursor, sizeof(ip)))
			return;
		__builtin_memcpy(&inner.source, &ip.saddr, sizeof(inner.source));
		__builtin_memcpy(&inner.destination, &ip.daddr, sizeof(inner.destination));
		extensions.protocol = ip.nexthdr;
		if (extensions_skip(skb, cursor, &extensions) || (extensions.fragment & bpf_htons(FRAGMENT_OFFSET_V6)))
			return;
		inner.protocol = extensions.protocol;
	} else {
		struct iphdr ip;

		if (cursor_read(skb, cursor, &ip) || ip.ihl < 5 || cursor_skip(cursor, ip.ihl * 4))
			return;
		if (ip.frag_off & bpf_htons(FRAGMENT_OFFSET_V4))
			return;
		address_from_v4(&inner.source, ip.saddr);
		address_from_v4(&inner.destination, ip.daddr);
		inner.protocol = ip.protocol;
	}
	if (!address_equal(&inner.source, &packet->destination))
		return;
	packet->related_transport = cursor->offset;
	if (has_ports(inner.protocol)) {
		if (cursor_read(skb, cursor, &ports))
			return;
		inner.rest = connection_rest(ports.source, ports.destination, inner.protocol, 0);
	} else if (inner.protocol == (packet->is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP)) {
		if (cursor_read(skb, cursor, &start) ||
		    !echo_ports(start.type, packet->is_v6, start.identifier, &inner))
			return;
	}
	connection_reverse(&packet->flow, &inner);
	packet->kind = PACKET_RELATED;
}

/* What an endpoint sends. It is no router: it reports only about what was sent to itself, and else it is ICMP of its own. */
static __always_inline void packet_of_endpoint(struct packet *packet)
{
	if (packet->kind != PACKET_RELATED || address_equal(&packet->flow.source, &packet->source))
		return;
	packet->kind = PACKET_UNTRACKED;
	packet->flow.source = packet->source;
	packet->flow.destination = packet->destination;
	packet->flow.rest = connection_rest(0, 0, packet->protocol, 0);
}

static __always_inline void packet_fragment_key(const struct __sk_buff *skb, const struct packet *packet,
						struct fragment_key *key)
{
	key->source = packet->source;
	key->destination = packet->frontend_port ? packet->frontend : packet->destination;
	key->id = packet->fragment_id;
	key->ifindex = skb->ifindex;
	key->protocol = packet->fragment_protocol;
}

/* Remember the ports of a first fragment that was let through. An ICMP error is no datagram that comes in parts. */
__noinline int packet_remember(struct __sk_buff *skb, const struct packet *packet)
{
	struct fragment_key key = {};
	struct fragment first = {};

	if (!packet || packet->kind == PACKET_RELATED)
		return 0;
	packet_fragment_key(skb, packet, &key);
	first.rest = connection_rest(packet->flow.source_port,
				     packet->frontend_port ?: packet->flow.destination_port, packet->protocol, 0);
	first.seen = fragment_now();
	first.kind = packet->kind == PACKET_OPENS ? PACKET_ANY : packet->kind;
	first.icmp_type = packet->icmp_type;
	first.icmp_code = packet->icmp_code;
	bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
	return 0;
}

/* Give a later fragment, with what follows at that offset, what is remembered of its first one. 0 or a reason. */
__noinline int packet_recall(struct __sk_buff *skb, struct packet *packet, __u32 offset)
{
	struct fragment_key key = {};
	const struct fragment *first;

	if (!packet)
		return REASON_TRUNCATED;
	packet->kind = PACKET_FRAGMENT;
	packet_fragment_key(skb, packet, &key);
	first = fragment_find(&key);
	if (first) {
		packet->flow.rest = first->rest;
		packet->protocol = packet->flow.protocol;
		packet->kind = first->kind;
		packet->icmp_type = first->icmp_type;
		packet->icmp_code = first->icmp_code;
	}
	return packet->protocol == IPPROTO_TCP && offset < FRAGMENT_TCP_FIRST ? REASON_MALFORMED : 0;
}

static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *packet, struct cursor *cursor,
					   __u32 fragment_offset)
{
	/* The start of a TCP header, as far as the flags: RFC 9293 3.1. */
	struct {
		__be16 source;
		__be16 destination;
		__be32 numbers[2];
		__u8 data_offset;
		__u8 flags;
		__be16 window;
	} tcp;
	struct {
		__be16 source;
		__be16 destination;
		__be16 length; /* of UDP */
		__be16 checksum;
	} ports;
	struct icmp_start icmp;
	int reason;

	packet->transport = cursor->offset;
	packet->flow.rest = connection_rest(0, 0, packet->protocol, 0);
	if (packet->part == PART_LATER) {
		if (fragment_offset + cursor->left > DATAGRAM_LIMIT)
			return REASON_MALFORMED;
		return packet_recall(skb, packet, fragment_offset);
	}
	switch (packet->protocol) {
	case IPPROTO_TCP:
		if (cursor->left < 20)
			return REASON_TRUNCATED;
		if (cursor_read(skb, cursor, &tcp))
			return REASON_TRUNCATED;
		if ((tcp.data_offset >> 4) < 5)
			return REASON_MALFORMED;
		if ((tcp.data_offset >> 4) * 4u > cursor->left)
			return REASON_TRUNCATED;
		packet->flow.rest = connection_rest(tcp.source, tcp.destination, packet->protocol, 0);
		packet->tcp_flags = tcp.flags;
		if (!tcp_flags_make_sense(tcp.flags))
			return REASON_MALFORMED;
		if ((tcp.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			packet->kind = PACKET_OPENS;
		else if (tcp.flags & TCP_SYN)
			packet->kind = PACKET_REPLY_ONLY;
		return 0;
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		if (cursor->left < (packet->protocol == IPPROTO_UDP ? 8 : 12))
			return REASON_TRUNCATED;
		if (cursor_read(skb, cursor, &ports))
			return REASON_TRUNCATED;
		packet->flow.rest = connection_rest(ports.source, ports.destination, packet->protocol, 0);
		if (packet->protocol == IPPROTO_UDP && !skb->gso_size)
			return udp_length_check(bpf_ntohs(ports.length), cursor->left, packet->part == PART_WHOLE);
		return 0;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((packet->protocol == IPPROTO_ICMPV6) != packet->is_v6)
			return REASON_MALFORMED;
		reason = cursor_read(skb, cursor, &icmp);
		if (reason)
			return reason;
		packet->icmp_type = icmp.type;
		packet->icmp_code = icmp.code;
		/* An echo has code 0; what says otherwise is none, and is judged by its type and code each time. */
		if (!icmp.code && echo_ports(icmp.type, packet->is_v6, icmp.identifier, &packet->flow)) {
			if (icmp.type == ICMP_ECHOREPLY || icmp.type == ICMPV6_ECHO_REPLY)
				packet->kind = PACKET_REPLY_ONLY;
			return 0;
		}
		packet->kind = PACKET_UNTRACKED;
		if (icmp_is_error(icmp.type, packet->is_v6) && !cursor_skip(cursor, sizeof(icmp)))
			parse_related(skb, packet, cursor);
		return 0;
	}
	return 0;
}

static __always_inline int parse_v4(struct __sk_buff *skb, struct packet *packet, struct cursor *cursor,
				    __u32 *fragment_offset)
{
	struct iphdr ip;
	__u32 words[sizeof(ip) / 4];
	__u32 total;
	__u64 sum;
	int reason = cursor_read(skb, cursor, &ip);

	if (reason)
		return reason;
	total = bpf_ntohs(ip.tot_len);
	if (!total && skb->gso_size) /* a packet beyond 64 kB before segmentation says 0 */
		total = cursor->left;
	if (ip.version != 4 || ip.ihl < 5 || total < ip.ihl * 4u)
		return REASON_MALFORMED;
	if (total > cursor->left)
		return REASON_TRUNCATED;
	cursor->left = total;
	address_from_v4(&packet->source, ip.saddr);
	address_from_v4(&packet->destination, ip.daddr);
	packet->protocol = ip.protocol;
	packet->hop_limit = ip.ttl;
	*fragment_offset = (bpf_ntohs(ip.frag_off) & FRAGMENT_OFFSET_V4) * 8;
	if (*fragment_offset)
		packet->part = PART_LATER;
	else if (ip.frag_off & bpf_htons(FRAGMENT_MORE_V4))
		packet->part = PART_FIRST;
	packet->fragment_id = ip.id;
	packet->fragment_protocol = ip.protocol;
	__builtin_memcpy(words, &ip, sizeof(words));
	sum = (__u64)words[0] + words[1] + words[2] + words[3] + words[4];
	if (ip.ihl > 5)
		reason = options_check(skb, cursor->offset + sizeof(ip), ip.ihl * 4 - sizeof(ip), sum);
	else
		reason = header_sum_is_right(sum) ? 0 : REASON_MALFORMED;
	return reason ?: cursor_skip(cursor, ip.ihl * 4);
}

static __always_inline int parse_v6(struct __sk_buff *skb, struct packet *packet, struct cursor *cursor,
				    __u32 *fragment_offset)
{
	struct extensions extensions = {};
	struct ipv6hdr ip;
	__u32 payload;
	int reason = cursor_read(skb, cursor, &ip);

	if (reason)
		return reason;
	cursor_skip(cursor, sizeof(ip));
	payload = bpf_ntohs(ip.payload_len);
	if (!payload && skb->gso_size)
		payload = cursor->left;
	if (ip.version != 6)
		return REASON_MALFORMED;
	if (payload > cursor->left)
		return REASON_TRUNCATED;
	cursor->left = payload;
	packet->is_v6 = 1;
	__builtin_memcpy(&packet->source, &ip.saddr, sizeof(packet->source));
	__builtin_memcpy(&packet->destination, &ip.daddr, sizeof(packet->destination));
	if (address_is_v4(&packet->source) || address_is_v4(&packet->destination))
		return REASON_MALFORMED;
	packet->protocol = ip.nexthdr;
	packet->hop_limit = ip.hop_limit;
	extensions.protocol = ip.nexthdr;
	reason = extensions_skip(skb, cursor, &extensions);
	packet->protocol = extensions.protocol;
	*fragment_offset = bpf_ntohs(extensions.fragment) & FRAGMENT_OFFSET_V6;
	if (*fragment_offset)
		packet->part = PART_LATER;
	else if (extensions.fragment & bpf_htons(FRAGMENT_MORE_V6))
		packet->part = PART_FIRST;
	packet->fragment_id = extensions.fragment_id;
	packet->fragment_protocol = extensions.fragment_protocol;
	return reason;
}

/* Fills the packet (which the caller zeroed) from a frame with IPv4 or IPv6. Returns 0 or a reason; what was
 * parsed before the reason was found is in the packet, for the event.
 *
 * Not static: the verifier checks a global function once by itself, so that the many ways through the headers do not
 * multiply with those through the rest of a program. */
__noinline int packet_parse(struct __sk_buff *skb, struct packet *packet)
{
	struct cursor cursor = {};
	__u32 fragment_offset = 0;
	int reason;

	if (!packet || skb->len < packet->link)
		return REASON_TRUNCATED;
	cursor.offset = packet->link;
	cursor.left = skb->len - packet->link;
	if (skb->vlan_present)
		return REASON_UNSUPPORTED;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		reason = parse_v4(skb, packet, &cursor, &fragment_offset);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		reason = parse_v6(skb, packet, &cursor, &fragment_offset);
	else
		return REASON_UNSUPPORTED;
	if (reason)
		return reason;
	packet->flow.source = packet->source;
	packet->flow.destination = packet->destination;
	return parse_transport(skb, packet, &cursor, fragment_offset);
}

/* The port that a packet is judged by and its flow is known by (struct flow_key), if no connection knows better: host byte
 * order; of ICMP type << 8 | code; 0 where the protocol has none. */
static __always_inline __u16 packet_port(const struct packet *packet)
{
	if (packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_ICMPV6)
		return packet->icmp_type << 8 | packet->icmp_code;
	return bpf_ntohs(packet->flow.destination_port);
}

/* Look at the packet's flow from the endpoint that it is going out of, or into. */
static __always_inline void packet_face(struct packet *packet, __u8 direction)
{
	packet->flow.rest = connection_rest(packet->flow.source_port, packet->flow.destination_port,
					    packet->flow.protocol, direction);
}
