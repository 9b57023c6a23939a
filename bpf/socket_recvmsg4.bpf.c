/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* cgroup hook recvmsg4: a UDP socket learns by IPv4 who sent what it received. See socket.h. Fails open: what is no service passes as it is. */
#include <bpfleet/socket.h>
#include <bpfleet/vocabulary.h>

SEC("cgroup/recvmsg4")
int bpfl_recvmsg4(struct bpf_sock_addr *context)
{
	return socket_to_frontend(context, false);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
