/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the benches time beside the real programs.
 *
 *   - bench_lookup: one look-up in `connections`, by the key of the frame's own TCP flow, and nothing else;
 *   - bench_tunnel: gives the frame a tunnel key, as the tunnel device would have, and goes on in the program in
 *     `target`. BPF_PROG_TEST_RUN has no way to say where a packet came from. (The kernel keeps one key for both
 *     directions: what is sent from an address reads as what was received from it.)
 *   - bench_empty: an empty program as target, which shows what bench_tunnel itself costs.
 */
#include <linux/ip.h>

#include <bpfleet/connection.h>
#include <bpfleet/reasons.h>

/* As in bench/timing.py. */
#define TUNNEL_MEMBER 0xc0000202 /* 192.0.2.2, host byte order */
#define TUNNEL_IDENTITY 80000

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} target SEC(".maps");

struct frame {
	struct ethhdr ethernet;
	struct iphdr ip;
	__be16 source_port;
	__be16 destination_port;
} __attribute__((packed));

SEC("tc")
int bench_lookup(struct __sk_buff *skb)
{
	const struct frame *frame = (void *)(long)skb->data;
	struct connection_key key;

	if ((void *)(frame + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	address_from_v4(&key.source, frame->ip.saddr);
	address_from_v4(&key.destination, frame->ip.daddr);
	key.rest = connection_rest(frame->source_port, frame->destination_port, IPPROTO_TCP, DIRECTION_EGRESS);
	return bpf_map_lookup_elem(&connections, &key) ? TC_ACT_OK : TC_ACT_SHOT;
}

SEC("tc")
int bench_tunnel(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = { .tunnel_id = TUNNEL_IDENTITY, .local_ipv4 = TUNNEL_MEMBER, .remote_ipv4 = 1 };

	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), 0))
		return TC_ACT_SHOT;
	bpf_tail_call(skb, &target, 0);
	return TC_ACT_SHOT;
}

SEC("tc")
int bench_empty(struct __sk_buff *skb __attribute__((unused)))
{
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
