/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* cgroup hook connect4: a socket connects by IPv4. See socket.h. Fails open: what is no service passes as it is. */
#include <bpfleet/socket.h>
#include <bpfleet/vocabulary.h>

SEC("cgroup/connect4")
int bpfl_connect4(struct bpf_sock_addr *context)
{
	return socket_to_backend(context, false, true);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
