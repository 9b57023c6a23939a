/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Flow history: what was judged how, by pair of identities, with packets, bytes, first and last seen. No process keeps it.
 *
 * A flow has a slot: its key in `flow_slots` leads to a number, under which `flows` has what it is and `flow_counts` what
 * it carried, by CPU. The slow path finds the number or takes a free one; a connection's record holds it, so that an
 * established packet pays for one array element of its own CPU. What a record says of its verdict stands in the slot.
 *
 * Flows that passed and flows that were dropped have slots of their own, so that who is dropped a lot displaces nothing
 * that passed. Where none is free, one that was idle is taken: of what passed after FLOW_IDLE_TICKS, longer than any
 * record lives that nothing uses, so no live record that lets pass ever names a slot that means something else by now.
 * Of what was dropped after FLOW_DROPPED_IDLE_TICKS, so that a port scan is soon forgotten; a record that denies looks
 * whether its slot has another flow since (flow_is_since). Where none of FLOW_PROBES is idle, the flow is counted together
 * with all others that did not fit.
 *
 * Taking a slot over: last_seen is exchanged for 0, then the slot is written, then its key is put into `flow_slots`, then
 * last_seen is written. Who found it by its old key sees the 0 or another key, and counts that packet as one that did not
 * fit. So a slot that was seen is what its key leads to, and who remembers a slot (judgement_copy.h) need only look at it.
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/reasons.h>

enum flow_slot {
	FLOW_PASSED = 0,  /* all that passed and did not fit */
	FLOW_DROPPED = 1, /* all that was dropped and did not fit */
	FLOW_FIRST = 2,
	FLOW_LIMIT = 2 + 8192 + 2048,
};

/* Which packets a count is of. */
enum flow_way {
	FLOW_OPENERS = 0, /* of who opened the connection */
	FLOW_ANSWERS = 1,
	FLOW_WAYS,
};

enum flow_time {
	FLOW_TICK_SHIFT = 30,	/* as CONNECTION_TICK_SHIFT */
	FLOW_IDLE_TICKS = 8192, /* 2.4 h; more than CONNECTION_TCP_TICKS */
	FLOW_DROPPED_IDLE_TICKS = 64, /* 69 s */
};

#define FLOW_PROBES 4 /* slots that are looked at for an idle one */

struct flow_key {
	__u32 source_identity;
	__u32 destination_identity;
	__u32 rule_id;
	__u16 port; /* the connection's destination port, host byte order; of ICMP type << 8 | code */
	__u8 protocol;
	__u8 direction; /* whose policy judged: enum direction */
	__u8 verdict;	/* enum verdict */
	__u8 reason;	/* of VERDICT_DROP: enum reason; else 0 */
	__u16 zero;
};

struct flow {
	struct flow_key key; /* verdict 0: the slot is free */
	__u32 last_seen;     /* ticks; 0: the slot is changing its owner */
	__u64 first_seen;    /* ns of CLOCK_MONOTONIC */
};

struct flow_count {
	__u64 packets;
	__u64 bytes;
};

struct flow_cursor {
	__u32 used; /* slots taken for the first time; may run over by as many as there are CPUs */
	__u32 hand; /* where to look for an idle one next */
	__u64 retired; /* flows that gave their slot to another */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FLOW_LIMIT);
	__type(key, struct flow_key);
	__type(value, __u32);
} flow_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOW_LIMIT);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

/* By CPU, way and slot, see flow_count_find. Not a per-CPU array: to find the element of one, its pointer must be read first. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 64 * FLOW_WAYS * FLOW_LIMIT);
	__uint(map_flags, BPF_F_MMAPABLE); /* its elements begin at a page, so that none lies across two cache lines */
	__type(key, __u32);
	__type(value, struct flow_count);
} flow_counts SEC(".maps");

/* By FLOW_PASSED and FLOW_DROPPED. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOW_FIRST);
	__type(key, __u32);
	__type(value, struct flow_cursor);
} flow_cursors SEC(".maps");

static __always_inline __u32 flow_now(void)
{
	return clock_coarse_ns() >> FLOW_TICK_SHIFT;
}

/* Each CPU has as many counts as `flows` has slots, and as many of answers, those that travel against the connection; one
 * CPU's after the other's. NULL if there is no such CPU. */
static __always_inline struct flow_count *flow_count_find(__u32 cpu, enum flow_way way, __u32 slot)
{
	__u32 index = (cpu * FLOW_WAYS + way) * (FLOW_FIRST + flows_passed + flows_dropped) + slot;

	return bpf_map_lookup_elem(&flow_counts, &index);
}

/* This CPU's count of a slot. */
static __always_inline struct flow_count *flow_count_here(__u32 slot, bool is_answer)
{
	return flow_count_find(bpf_get_smp_processor_id(), is_answer ? FLOW_ANSWERS : FLOW_OPENERS, slot);
}

/* Have a slot's count on its way, while other memory is waited for. */
static __always_inline void flow_approach(const __u32 *slot, bool is_answer)
{
	const struct flow_count *count = flow_count_here(*slot, is_answer);

	if (count)
		(void)*(const volatile __u64 *)&count->packets;
}

/* Count a packet into a slot. The path of every packet. */
static __always_inline void flow_add(const __u32 *slot, bool is_answer, __u32 bytes)
{
	struct flow_count *count = flow_count_here(*slot, is_answer);

	if (!count)
		return;
	count->packets++;
	count->bytes += bytes;
}

/* Once a tick at most for each connection. */
static __always_inline void flow_touch(const __u32 *slot, __u32 now)
{
	struct flow *flow;

	if (*slot < FLOW_FIRST)
		return;
	flow = bpf_map_lookup_elem(&flows, slot);
	if (flow && flow->last_seen != now)
		flow->last_seen = now;
}

static __always_inline bool flow_is(const struct flow *flow, const struct flow_key *key)
{
	const __u32 *a = (const __u32 *)&flow->key, *b = (const __u32 *)key;

	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]));
}

/* Whether a slot that was found by its key is that key's still, and not idle from here on. */
static __always_inline bool flow_hold(struct flow *flow, const struct flow_key *key, __u32 now)
{
	__u32 seen = *(volatile __u32 *)&flow->last_seen;

	if (!seen)
		return false;
	if (seen != now && __sync_val_compare_and_swap(&flow->last_seen, seen, now) == 0)
		return false;
	return flow_is(flow, key);
}

/* Whether a slot has had one owner since it was used at a time, the tick `seen`, and is not idle from here on. Another
 * takes it over only when it was unused for FLOW_DROPPED_IDLE_TICKS, so half of that tells the two, however coarse the
 * clocks. */
static __always_inline bool flow_is_since(struct flow *flow, __u32 seen, __u32 now)
{
	__u32 last = *(volatile __u32 *)&flow->last_seen;
	__u32 first = *(volatile __u64 *)&flow->first_seen >> FLOW_TICK_SHIFT;

	if (!last || (__s32)(first - seen) > FLOW_DROPPED_IDLE_TICKS / 2)
		return false;
	if (last != now && __sync_val_compare_and_swap(&flow->last_seen, last, now) == 0)
		return false;
	first = *(volatile __u64 *)&flow->first_seen >> FLOW_TICK_SHIFT;
	return (__s32)(first - seen) <= FLOW_DROPPED_IDLE_TICKS / 2;
}

static long flow_clear_cpu(__u32 cpu, void *slot)
{
	for (int way = 0; way < FLOW_WAYS; way++) {
		struct flow_count *count = flow_count_find(cpu, way, *(__u32 *)slot);

		if (!count)
			return 1;
		count->packets = 0;
		count->bytes = 0;
	}
	return 0;
}

/* After how many ticks a slot is another's to take. */
static __always_inline __s32 flow_idle_ticks(__u32 kind)
{
	return kind == FLOW_DROPPED ? FLOW_DROPPED_IDLE_TICKS : FLOW_IDLE_TICKS;
}

/* A slot that nobody has: `kind` itself if there is none. */
static __always_inline __u32 flow_claim(__u32 kind, __u32 now)
{
	struct flow_cursor *cursor = bpf_map_lookup_elem(&flow_cursors, &kind);
	__u32 limit = kind == FLOW_DROPPED ? flows_dropped : flows_passed;
	__u32 first = FLOW_FIRST + (kind == FLOW_DROPPED ? flows_passed : 0);

	if (!cursor || !limit)
		return kind;
	if (cursor->used < limit) {
		__u32 slot = __sync_fetch_and_add(&cursor->used, 1);
		struct flow *flow;

		if (slot < limit) {
			slot += first;
			flow = bpf_map_lookup_elem(&flows, &slot);
			if (!flow)
				return kind;
			/* Taken: programs with other sizes were here before. */
			if (!flow->last_seen && !flow->key.verdict)
				return slot;
		}
	}
	for (int i = 0; i < FLOW_PROBES; i++) {
		__u32 slot = first + __sync_fetch_and_add(&cursor->hand, 1) % limit;
		struct flow *flow = bpf_map_lookup_elem(&flows, &slot);
		__u32 seen;

		if (!flow)
			return kind;
		seen = *(volatile __u32 *)&flow->last_seen;
		if (!seen || (__s32)(now - seen) <= flow_idle_ticks(kind) ||
		    __sync_val_compare_and_swap(&flow->last_seen, seen, 0) != seen)
			continue;
		bpf_map_delete_elem(&flow_slots, &flow->key);
		bpf_loop(1 << 16, flow_clear_cpu, &slot, 0);
		if (flow->key.verdict) /* else nobody had it, see flow_find */
			__sync_fetch_and_add(&cursor->retired, 1);
		return slot;
	}
	return kind;
}

/* The slot of a flow, seen now. Not on the path of an established connection.
 *
 * Not static: the verifier checks it once by itself, as packet_parse. Until 6.2 it takes no argument of such a function
 * for a map's key, hence the copy. */
__noinline int flow_find(const struct flow_key *wanted, __u32 now)
{
	struct flow_key key;
	struct flow *flow;
	__u32 *known;
	__u32 kind, slot;

	if (!wanted)
		return FLOW_PASSED;
	key = *wanted;
	kind = key.verdict == VERDICT_ALLOW || key.verdict == VERDICT_AUDIT ? FLOW_PASSED : FLOW_DROPPED;
	known = bpf_map_lookup_elem(&flow_slots, &key);
	if (known) {
		slot = *known;
		flow = bpf_map_lookup_elem(&flows, &slot);
		return flow && flow_hold(flow, &key, now) ? slot : kind;
	}
	slot = flow_claim(kind, now);
	if (slot < FLOW_FIRST)
		return slot;
	flow = bpf_map_lookup_elem(&flows, &slot);
	if (!flow)
		return kind;
	flow->key = key;
	flow->first_seen = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&flow_slots, &key, &slot, BPF_NOEXIST)) {
		/* Another CPU was first. This slot is nobody's, and the next flow's to take: idle since a time that is no
		 * owner's, so that of two CPUs that try to take it the second does not take it from the first. */
		flow->key = (struct flow_key){};
		now = (now - flow_idle_ticks(kind) - 2) | 1;
		known = bpf_map_lookup_elem(&flow_slots, &key);
		slot = known ? *known : kind;
	}
	__sync_lock_test_and_set(&flow->last_seen, now);
	return slot;
}
