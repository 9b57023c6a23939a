/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Why a packet went where it went. Every packet at our hooks ends in exactly one of these, and is counted there; what
 * audit mode let pass is counted as such besides.
 *
 * The numbers are public (counters, events, stored output): never renumber or reuse one; add at the end of its half.
 * 1 to 15 are ways to pass, from 16 on packets were dropped. REASON_LIMIT is the size of `counters`.
 */
#pragma once

enum reason {
	REASON_NONE = 0,

	REASON_TO_ENDPOINT = 1,	/* delivered to an endpoint of this node */
	REASON_TO_TUNNEL = 2,	/* encapsulated towards another node */
	REASON_TO_STACK = 3,	/* handed to the host's network stack: for this host, or for the world */
	REASON_NEIGHBOUR = 4,	/* ARP, neighbour discovery or DHCP of an endpoint with its gateway, or of the host */
	REASON_UNDERLAY = 5,	/* passed at an underlay device */
	REASON_SERVICE = 6,	/* a socket was given a backend; or a workload was told that there is none */
	REASON_FAILSAFE = 7,	/* of events only: a new connection to a failsafe port, which no policy can close */

	REASON_AUDITED = 10,	/* counted besides: a judgement that let pass what policy would drop without audit mode */

	REASON_DENIED_BY_RULE = 16,	/* a deny rule matched; the event names it */
	REASON_DENIED_BY_DEFAULT = 17,	/* the direction is selected and no rule allows it */
	REASON_TRUNCATED = 18,		/* shorter than its headers say */
	REASON_MALFORMED = 19,		/* headers that cannot be: versions, lengths, checksum of IPv4's, options, flags, mapped addresses */
	REASON_EXTENSION_HEADERS = 20,	/* more IPv6 extension headers than are looked at */
	REASON_UNSUPPORTED = 21,	/* neither IPv4, IPv6 nor ARP, or VLAN-tagged */
	REASON_FRAGMENT = 22,		/* a later fragment where only its missing ports could decide */
	REASON_MULTICAST = 23,		/* multicast or broadcast, which no endpoint owns */
	REASON_NO_ENDPOINT = 24,	/* the device has no endpoint record, or the endpoint no device yet */
	REASON_WAITING = 25,		/* the endpoint has no identity yet */
	REASON_SPOOFED_SOURCE = 26,	/* the source address is not one that may come from there */
	REASON_NO_CONNECTION = 27,	/* can only be a reply, but nothing is there to reply to */
	REASON_CONNECTION_INSERT = 28,	/* the connection could not be recorded */
	REASON_HOP_LIMIT = 29,		/* TTL or hop limit used up */
	REASON_OWN_TUNNEL = 30,		/* a workload's own packet to the tunnel port of a member */
	REASON_NO_TUNNEL_DEVICE = 31,	/* `node` does not name the tunnel device */
	REASON_TUNNEL_KEY = 32,		/* no tunnel key, or it could not be set */
	REASON_TUNNEL_RESERVED = 33,	/* a VNI that no node may send: unknown, host, world, waiting */
	REASON_TUNNEL_UNKNOWN_NODE = 34, /* the outer source is no member */
	REASON_TUNNEL_FORGED_SOURCE = 35, /* the inner source is not an address of that member */
	REASON_TUNNEL_FORGED_IDENTITY = 36, /* the VNI is not the identity of the inner source */
	REASON_UNKNOWN_DESTINATION = 37, /* for no endpoint here, or for no node's workload */
	REASON_NOT_HOST_SOURCE = 38,	/* the host stack forwards somebody else's packet into the tunnel */
	REASON_UNDERLAY_TUNNEL = 39,	/* a tunnel packet whose outer source is no member */
	REASON_UNDERLAY_WORKLOAD = 40,	/* a bare packet on the underlay with a workload's source */
	REASON_REWRITE = 41,		/* the kernel refused to change the packet */
	REASON_SERVICE_NO_BACKEND = 42,	/* to a service without backends (at tc also: none but the client itself): refused at once */
	REASON_SERVICE_FLOW = 43,	/* a flow's translation could not be recorded, or is lost */
	REASON_BLOCKED = 47,		/* from a network that the cluster blocks */
	REASON_TUNNEL_SOURCE_PORT = 48,	/* a tunnel packet that a process of a member sent, and no tunnel device */

	REASON_LIMIT = 64,
};

/* What policy said about a connection, or that the packet never got so far. */
enum verdict {
	VERDICT_NONE = 0,
	VERDICT_ALLOW = 1,	  /* rule_id names the rule; 0: no policy closes this direction */
	VERDICT_DENY = 2,	  /* rule_id names the deny rule */
	VERDICT_DEFAULT_DENY = 3, /* rule_id is the direction's pseudo-rule, which names the selecting policies */
	VERDICT_DROP = 4,	  /* dropped for a reason other than policy */
	VERDICT_AUDIT = 5,	  /* passed, but would be dropped without audit mode; rule_id names what would drop it */
};

/* Which side's policy judges: the sender's egress or the receiver's ingress. Part of map keys. */
enum direction {
	DIRECTION_INGRESS = 0,
	DIRECTION_EGRESS = 1,
};

/* The hook a program sits at. */
enum hook {
	HOOK_FROM_ENDPOINT = 1,
	HOOK_TO_ENDPOINT = 2,
	HOOK_FROM_TUNNEL = 3,
	HOOK_TO_TUNNEL = 4,
	HOOK_FROM_UNDERLAY = 5,
	HOOK_TO_UNDERLAY = 6,
	HOOK_XDP_UNDERLAY = 7,
	HOOK_SOCKET = 8,
};
