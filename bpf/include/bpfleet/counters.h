/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How many packets ended in each reason, by CPU. The index is the reason's number. */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/reasons.h>

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASON_LIMIT);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

static __always_inline void counter_add(__u32 reason, __u32 bytes)
{
	struct counter *counter = bpf_map_lookup_elem(&counters, &reason);

	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
}
