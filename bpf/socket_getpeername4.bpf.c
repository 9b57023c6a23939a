/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* cgroup hook getpeername4: a process asks for the IPv4 address of a socket's other end. See socket.h. Fails open: what is no service passes as it is. */
#include <bpfleet/socket.h>
#include <bpfleet/vocabulary.h>

SEC("cgroup/getpeername4")
int bpfl_getpeer4(struct bpf_sock_addr *context)
{
	return socket_to_frontend(context, false);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
