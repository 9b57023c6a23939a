/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The generation of all policies of this node, those of the host included: one word, which a program reads once, before
 * it asks any policy. So whatever it judges of a packet, at both ends and at the host, is judged by one generation.
 *
 * A change never touches what is in force. It
 *
 *   1. puts every policy map that differs into `policies_staged`, which nobody looks at; an empty one stands for none;
 *   2. writes the next generation's number and GENERATION_STAGED at once, the switch: who reads this word looks into
 *      `policies_staged` first, and into `policies` for subjects that are not there;
 *   3. waits until no program runs that read the old word (an update of a map of maps does), and only then puts the same
 *      maps into `policies`;
 *   4. takes GENERATION_STAGED off again: from here on both ways find the same maps;
 *   5. empties `policies_staged`.
 *
 * Whoever dies in between leaves the old generation in force, whole (before 2), or the new one; the next change begins
 * with what is left of 3 to 5.
 *
 * The number is the policy's half of the revisions in connection records: after a switch each connection is judged once
 * more. It begins with a random one, so that records outlive the loss of this map and are never believed by chance.
 */
#pragma once

#include <bpfleet/base.h>

enum generation_word {
	GENERATION_STAGED = 1, /* what differs is in `policies_staged`; the other bits are the number */
	GENERATION_STEP = 2,
};

struct generation {
	__u32 word;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct generation);
} generation SEC(".maps");

static __always_inline __u32 generation_read(void)
{
	__u32 zero = 0;
	const struct generation *found = bpf_map_lookup_elem(&generation, &zero);

	return found ? *(const volatile __u32 *)&found->word : 0;
}

/* As connection records have it: the same before and after step 4, and never 0. */
static __always_inline __u32 generation_revision(__u32 word)
{
	return word | GENERATION_STAGED;
}
