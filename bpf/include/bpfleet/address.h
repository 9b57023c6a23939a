/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One 128-bit address for both families: IPv4 is stored as IPv4-mapped IPv6 (::ffff:a.b.c.d, RFC 4291 2.5.5.2), so
 * that every key and every comparison has one form. A real IPv6 packet that carries a mapped address is refused by the
 * parser, or it could pass for an IPv4 host.
 */
#pragma once

struct address {
	union {
		__u8 bytes[16];
		__be32 words[4];
		__u64 halves[2];
	};
};

struct mac {
	__u8 bytes[6];
} __attribute__((aligned(2))); /* so that it is copied in words */

static __always_inline bool address_equal(const struct address *a, const struct address *b)
{
	return a->halves[0] == b->halves[0] && a->halves[1] == b->halves[1];
}

static __always_inline bool address_is_zero(const struct address *a)
{
	return !(a->halves[0] | a->halves[1]);
}

static __always_inline bool address_is_v4(const struct address *a)
{
	return !a->halves[0] && a->words[2] == bpf_htonl(0x0000ffff);
}

/* In one store of each half: what is written in words and read in halves makes the CPU wait for the store. */
static __always_inline void address_from_v4(struct address *a, __be32 v4)
{
	a->halves[0] = 0;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	a->halves[1] = (__u64)v4 << 32 | 0xffff0000;
#else
	a->halves[1] = 0x0000ffff00000000ULL | v4;
#endif
}

/* 224.0.0.0/4, 255.255.255.255 and ff00::/8: nothing that one endpoint owns. */
static __always_inline bool address_is_multicast(const struct address *a)
{
	if (address_is_v4(a))
		return a->bytes[12] >= 224;
	return a->bytes[0] == 0xff;
}

/* fe80::/10 and the link-local multicast groups ff02::/16: never routed (RFC 4291 2.5.6, 2.7). */
static __always_inline bool address_is_link_local_v6(const struct address *a)
{
	return (a->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) ||
	       (a->words[0] & bpf_htonl(0xffff0000)) == bpf_htonl(0xff020000);
}
