/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What makes no packet, besides what parsing finds: lengths at odds with each other, TCP flags that no stack sends. Receivers'
 * stacks refuse all of it as well; here it is neither judged nor recorded, and scans that live on it get no answer.
 *
 * Left to the receiver's stack, which every packet that passes comes to: transports' checksums, which the sender's device may
 * still have to finish (unfinished.h), and what options and extension headers say. IPv4's header has its checksum from the
 * stack that makes it. What the kernel put together from several packets, or will take apart (gso_size), has the lengths that
 * the kernel gave it, and UDP's are then no packet's.
 */
#pragma once

#include <linux/ip.h>

#include <bpfleet/base.h>
#include <bpfleet/reasons.h>

#define OPTIONS_LIMIT 40     /* bytes behind an IPv4 header */
#define DATAGRAM_LIMIT 65535 /* bytes that fragments may make up, of either family */
#define UDP_HEADER 8

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* A sum of 32-bit words as one of 16 bits, in ones' complement (RFC 1071). */
static __always_inline __u64 header_sum_fold(__u64 sum)
{
	sum = (sum >> 32) + (__u32)sum;
	sum = (sum >> 16) + (sum & 0xffff);
	return (sum >> 16) + (sum & 0xffff);
}

/* The sum of an IPv4 header's words, its checksum among them: nothing but ones. */
static __always_inline bool header_sum_is_right(__u64 sum)
{
	return header_sum_fold(sum) == 0xffff; /* a sum of 0 is that of a header of zeros, which is none */
}

/* The checksum of an IPv4 header without options, whose own is 0 yet. */
static __always_inline __u16 header_sum(const struct iphdr *ip)
{
	const __u32 *words = (const __u32 *)ip;
	__u64 sum = 0;

	for (int word = 0; word < 5; word++)
		sum += words[word];
	return ~header_sum_fold(header_sum_fold(sum));
}

/* IPv4 options of RFC 791 3.1: each but the two of one byte has a length, of at least its own two bytes. `sum` is that of
 * the header before them. Returns 0 or a reason.
 *
 * Not static: the verifier checks it once by itself, as packet_parse. */
__noinline int options_check(struct __sk_buff *skb, __u32 offset, __u32 size, __u64 sum)
{
	__u8 options[OPTIONS_LIMIT + 4] __attribute__((aligned(4))) = {}; /* a length that is not there is 0 */
	__u32 inside = 0, last = size - 1;

	asm volatile("" : "+r"(last)); /* until 6.8 the verifier does not see that what is not 0 is more than 0 */
	if (last >= OPTIONS_LIMIT)
		return 0;
	if (bpf_skb_load_bytes(skb, offset, options, last + 1))
		return REASON_TRUNCATED;
	for (__u32 word = 0; word < OPTIONS_LIMIT / 4; word++)
		sum += ((__u32 *)options)[word];
	if (!header_sum_is_right(sum))
		return REASON_MALFORMED;
	for (__u32 at = 0; at < OPTIONS_LIMIT; at++) {
		if (at >= size)
			return 0;
		if (inside) {
			inside--;
			continue;
		}
		if (options[at] == 0) /* end of the list */
			return 0;
		if (options[at] == 1) /* no operation */
			continue;
		if (options[at + 1] < 2 || options[at + 1] > size - at)
			return REASON_MALFORMED;
		inside = options[at + 1] - 1;
	}
	return 0;
}

/* A SYN neither ends nor resets; what has no SYN has an ACK, or resets (RFC 9293 3.10.7). */
static __always_inline bool tcp_flags_make_sense(__u8 flags)
{
	return flags & TCP_SYN ? !(flags & (TCP_FIN | TCP_RST)) : flags & (TCP_ACK | TCP_RST);
}

/* The length in a UDP header; `left` is what the IP header leaves for it. In a first fragment it is that of all. Returns 0
 * or a reason. */
static __always_inline int udp_length_check(__u32 length, __u32 left, bool is_whole)
{
	if (length < UDP_HEADER)
		return REASON_MALFORMED;
	return is_whole && length > left ? REASON_TRUNCATED : 0;
}
