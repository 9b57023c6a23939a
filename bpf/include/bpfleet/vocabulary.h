/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Brings every public enum, and the types of inner maps, into the object's BTF, which otherwise holds only what
 * functions and maps mention. Python's names for reasons, verdicts and the rest are read from there. Never read.
 */
#pragma once

#include <bpfleet/connection.h>
#include <bpfleet/endpoint.h>
#include <bpfleet/flow.h>
#include <bpfleet/fragment.h>
#include <bpfleet/generation.h>
#include <bpfleet/identity.h>
#include <bpfleet/policy.h>
#include <bpfleet/reasons.h>
#include <bpfleet/service.h>

struct vocabulary {
	enum reason reason;
	enum verdict verdict;
	enum direction direction;
	enum hook hook;
	enum identity identity;
	enum route route;
	enum endpoint_flag endpoint_flag;
	enum policy_peer policy_peer;
	enum policy_action policy_action;
	enum policy_header policy_header;
	enum policy_part policy_part;
	enum policy_flag policy_flag;
	enum policy_shape policy_shape;
	enum connection_state connection_state;
	enum connection_time connection_time;
	enum generation_word generation_word;
	enum flow_slot flow_slot;
	enum flow_way flow_way;
	enum flow_time flow_time;
	enum tunnel_source tunnel_source;
	enum fragment_time fragment_time;
	struct policy_key policy_entries_key;
	struct policy_entry policy_entries_value;
	struct prefix_key prefix_classes_key;
	struct prefix_class prefix_classes_value;
	struct port_key port_intervals_key;
	struct port_interval port_intervals_value;
	__u32 backend_entries_key;
	struct backend backend_entries_value;
	/* Known whole, so that __sk_buff leaves one struct to be declared only: clang orders several by where they lie in
	 * its memory, and the same source would not always give the same object. */
	struct bpf_flow_keys flow_keys;
};

const volatile struct vocabulary vocabulary = {};
