/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#include <bpfleet/counters.h>
#include <bpfleet/connection.h>
#include <bpfleet/endpoint.h>
#include <bpfleet/events.h>
#include <bpfleet/identity.h>
#include <bpfleet/node.h>
#include <bpfleet/policy.h>
#include <bpfleet/vocabulary.h>

SEC("tc")
int bpfl_to_tun(struct __sk_buff *skb)
{
	counter_add(REASON_UNSUPPORTED, skb->len);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
