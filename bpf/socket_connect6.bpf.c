/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* cgroup hook connect6: a socket connects by IPv6. See socket.h. Fails open: what is no service passes as it is. */
#include <bpfleet/socket.h>
#include <bpfleet/vocabulary.h>

SEC("cgroup/connect6")
int bpfl_connect6(struct bpf_sock_addr *context)
{
	return socket_to_backend(context, true, true);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
