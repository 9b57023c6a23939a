/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* cgroup hook recvmsg6: a UDP socket learns by IPv6 who sent what it received. See socket.h. Fails open: what is no service passes as it is. */
#include <bpfleet/socket.h>
#include <bpfleet/vocabulary.h>

SEC("cgroup/recvmsg6")
int bpfl_recvmsg6(struct bpf_sock_addr *context)
{
	return socket_to_frontend(context, true);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
