/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A place in a packet and how much of it is left, by what its headers say so far.
 *
 * Every step returns 0, or the reason to drop. Reads are direct where the bytes lie in the linear part, and else by
 * bpf_skb_load_bytes (which costs some 30 ns).
 */
#pragma once

#include <bpfleet/base.h>
#include <bpfleet/reasons.h>

#define DIRECT_LIMIT 1024 /* bytes into the frame; the verifier wants a bound */

struct cursor {
	__u32 offset;
	__u32 left;
};

/* Copy what lies at the cursor to *to. A macro for its type: the compiler copies bytes one by one through void. */
#define cursor_read(skb, cursor, to)                                                                      \
	({                                                                                                \
		void *__at = (void *)(long)(skb)->data + (cursor)->offset;                                \
		int __reason = 0;                                                                         \
                                                                                                          \
		if ((cursor)->left < sizeof(*(to)))                                                       \
			__reason = REASON_TRUNCATED;                                                      \
		else if ((cursor)->offset <= DIRECT_LIMIT &&                                              \
			 __at + sizeof(*(to)) <= (void *)(long)(skb)->data_end)                            \
			*(to) = *(typeof(to))__at;                                                        \
		else if (bpf_skb_load_bytes(skb, (cursor)->offset, to, sizeof(*(to))))                    \
			__reason = REASON_TRUNCATED;                                                      \
		__reason;                                                                                 \
	})

static __always_inline int cursor_skip(struct cursor *cursor, __u32 size)
{
	if (cursor->left < size)
		return REASON_TRUNCATED;
	cursor->offset += size;
	cursor->left -= size;
	return 0;
}
