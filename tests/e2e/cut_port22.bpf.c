// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* XDP, for tests: drops what would begin a TCP connection to port 22, after the first ALLOWED ones; all else passes,
 * so established connections live on. What a bad firewall rule does. IPv4 without options. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

__u32 begun;

SEC("xdp")
int cut(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct tcphdr *tcp = (void *)(ip + 1);

	if ((void *)(tcp + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_TCP)
		return XDP_PASS;
	if (tcp->dest != bpf_htons(22) || !tcp->syn || tcp->ack)
		return XDP_PASS;
	return __sync_fetch_and_add(&begun, 1) < ALLOWED ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
