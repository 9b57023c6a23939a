/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* cgroup hook getpeername6: a process asks for the IPv6 address of a socket's other end. See socket.h. Fails open: what is no service passes as it is. */
#include <bpfleet/socket.h>
#include <bpfleet/vocabulary.h>

SEC("cgroup/getpeername6")
int bpfl_getpeer6(struct bpf_sock_addr *context)
{
	return socket_to_frontend(context, true);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
