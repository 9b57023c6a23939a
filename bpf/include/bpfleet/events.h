/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Verdict events: the verdict on every new connection, and every drop.
 *
 * Each CPU owns `slots` consecutive elements of `events` (see events_slots_mask) and overwrites its oldest. Event
 * number n (from 1, counted by CPU in `event_cursor`) lies in element cpu * slots + ((n - 1) & events_slots_mask).
 * Any number of readers map both arrays and take no lock:
 *   read slot.sequence; 0: never written, or being written; copy the slot; read sequence again; equal: the copy is
 *   whole. Gaps in the numbers of a CPU are the events that were overwritten before they were read.
 * The writer clears the sequence, writes the fields, sets the sequence; both stores are atomic exchanges, which order
 * the rest on every architecture.
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/reasons.h>

struct event {
	__u64 sequence; /* 0 while being written; first, as the protocol reads it before and after the rest */
	__u64 time_ns;	/* CLOCK_MONOTONIC */
	struct address source;
	struct address destination;
	__u32 rule_id;
	__u32 source_identity;
	__u32 destination_identity;
	__u32 ifindex; /* of the device the program sits at */
	__u32 length;  /* of the frame, bytes */
	__u16 source_port;	/* host byte order; of ICMP and ICMPv6 the type */
	__u16 destination_port; /* host byte order; of ICMP and ICMPv6 the code */
	__u8 protocol;
	__u8 verdict;	/* enum verdict */
	__u8 direction; /* enum direction; of a drop before policy that of the hook */
	__u8 reason;	/* enum reason */
	__u8 tcp_flags;
	__u8 hook; /* enum hook */
	__u16 zero;
};

_Static_assert(sizeof(struct event) == 80, "no padding that would reach readers");

struct event_cursor {
	__u64 written; /* events of this CPU so far: the sequence of the newest */
	__u64 alone[7]; /* a cache line for each CPU */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 64 * 256);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct event);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct event_cursor);
} event_cursor SEC(".maps");

/* A slot of this CPU, marked as being written, and the number it is to get; NULL if the arrays are too small. */
static __always_inline struct event *event_begin(__u64 *sequence)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct event_cursor *cursor = bpf_map_lookup_elem(&event_cursor, &cpu);
	struct event *event;
	__u32 index;
	__u64 before;

	if (!cursor)
		return NULL;
	before = __sync_fetch_and_add(&cursor->written, 1);
	index = cpu * (events_slots_mask + 1) + ((__u32)before & events_slots_mask);
	event = bpf_map_lookup_elem(&events, &index);
	if (!event)
		return NULL;
	__sync_lock_test_and_set(&event->sequence, 0);
	*sequence = before + 1;
	return event;
}

static __always_inline void event_end(struct event *event, __u64 sequence)
{
	__sync_lock_test_and_set(&event->sequence, sequence);
}
