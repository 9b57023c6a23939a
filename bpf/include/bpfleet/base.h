/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every other header needs: kernel types, helpers, and the load-time constants.
 *
 * Constants are frozen into .rodata when an object is loaded, so that the verifier removes what is off. All objects
 * hold the same ones: the loader may write every constant into every object.
 */
#pragma once

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include <bpfleet/address.h>

#ifndef __noinline
#define __noinline __attribute__((noinline))
#endif

/* UDP port of the tunnel, host byte order. */
const volatile __u16 tunnel_port = 8472;

/* The UDP ports that tunnel devices send from, host byte order. A process needs CAP_NET_BIND_SERVICE to send from one, so
 * none without can make a tunnel packet in its node's name. NFS clients use the same ones for the same reason. */
enum tunnel_source {
	TUNNEL_SOURCE_LOWEST = 665,
	TUNNEL_SOURCE_HIGHEST = 1023,
};

static __always_inline bool is_tunnel_source(__be16 port)
{
	return bpf_ntohs(port) >= TUNNEL_SOURCE_LOWEST && bpf_ntohs(port) <= TUNNEL_SOURCE_HIGHEST;
}

/* Underlay address of this node: the outer source of every tunnel packet it sends. Zero lets the route choose, which
 * is right only on a host with one address. */
const volatile struct address node_address = {};

/* The gateway of every endpoint, by family. */
const volatile struct address gateway_v4 = {};
const volatile struct address gateway_v6 = {};

/* Whether a policy selects this node itself: then the host's own traffic is judged (host.h), and costs that. */
const volatile __u8 host_policy = 0;

/* Whether bpfl_from_under looks for blocked sources: there are some, and a device without XDP. */
const volatile __u8 blocked_at_tc = 0;

/* Whether packets may go straight from the underlay device to their workload (direct.h) and back (direct_send.h). */
const volatile __u8 direct_delivery = 0;

/* Whether there are services, so that endpoints' packets without a connection are looked up among them (balance.h). */
const volatile __u8 services_at_tc = 0;

/* Nanoseconds of the kernel's tick, or 0: not known. Then a look at the clock is a call, and returns from calls are what
 * costs most where the CPU's return predictor is not trusted: 25 ns of each packet. */
const volatile __u32 jiffy_ns = 0;

/* Slots of one CPU in `events`, less one; slots are a power of two, and `events` holds possible CPUs x slots. */
const volatile __u32 events_slots_mask = 255;

/* Sets of one CPU in `connection_copies`, less one, as above, and its copies in `judgement_copies`. */
const volatile __u32 copies_mask = 1023;

/* Whether `connections` is being made anew in another size, and this program keeps both (connection.h). */
const volatile __u8 connections_move = 0;

/* Whether the kernel shows programs its own structures, as those from 6.2 on (kernel.h). */
const volatile __u8 kernel_contexts = 0;

/* How many flows the history keeps (flow.h), of those that passed and of those that were dropped. Its maps have room for
 * both and two more. */
const volatile __u32 flows_passed = 8192;
const volatile __u32 flows_dropped = 2048;

/* The monotonic clock, some milliseconds coarse. Jiffies begin 300 s before 2^32, with the clock at 0. */
static __always_inline __u64 clock_coarse_ns(void)
{
	if (!jiffy_ns)
		return bpf_ktime_get_coarse_ns();
	return (bpf_jiffies64() - 0x100000000ULL) * jiffy_ns + 300000000000ULL;
}
