/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Traffic between workloads, for the benches. Each mode pins itself to a CPU, ends by itself and prints a result, but
 * for `serve`, which the bench ends, and `probe`, which ends with its standard input.
 *
 *   traffic serve CPU PORT                          takes TCP connections: discards, or answers byte by byte
 *   traffic send CPU ADDRESS PORT SECONDS           sends to `serve`; prints bits a second until the last was taken
 *   traffic ask CPU ADDRESS PORT COUNT              sends a byte and awaits one; prints nanoseconds for each, the mean of
 *                                                   the middle half
 *   traffic blast CPU ADDRESS PORT PORTS SECONDS RATE   UDP to ports at random of PORT.. (always the same ones); RATE a
 *                                                   second, 0: as fast as it can; prints datagrams sent and
 *                                                   the seconds of CPU that took
 *   traffic probe NETNS NETNS ADDRESS PORT MS       UDP from one namespace to the other, a datagram each MS; prints "N
 *                                                   at" for the first that arrives after one did not, "- at" for the
 *                                                   first that did not, with the time it was sent (CLOCK_MONOTONIC, ns)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 32
#define CHUNK (256 * 1024)

static void fail(const char *what)
{
	fprintf(stderr, "traffic: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static void stay_on(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		fail("cannot stay on the CPU");
	/* Before whatever else runs on the machine. */
	if (setpriority(PRIO_PROCESS, 0, -20))
		fail("cannot be preferred");
}

static struct sockaddr_in to(const char *address, int port)
{
	struct sockaddr_in there = { .sin_family = AF_INET, .sin_port = htons(port) };

	if (inet_pton(AF_INET, address, &there.sin_addr) != 1)
		fail(address);
	return there;
}

static int connected(const char *address, int port)
{
	struct sockaddr_in there = to(address, port);
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (void *)&there, sizeof(there)))
		fail("cannot connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static void serve(int port)
{
	struct sockaddr_in here = to("0.0.0.0", port);
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	static char data[CHUNK];
	ssize_t size;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (void *)&here, sizeof(here)) || listen(listener, 16))
		fail("cannot listen");
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			fail("cannot accept");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		/* A byte alone is a question. */
		while ((size = read(fd, data, sizeof(data))) > 0)
			if (size == 1 && write(fd, data, 1) != 1)
				break;
		close(fd);
	}
}

static void send_for(const char *address, int port, double seconds)
{
	static char data[CHUNK];
	int fd = connected(address, port);
	uint64_t began = now(), end = began + seconds * 1e9, sent = 0;

	while (now() < end) {
		ssize_t size = write(fd, data, sizeof(data));

		if (size <= 0)
			fail("cannot send");
		sent += size;
	}
	shutdown(fd, SHUT_WR);
	while (read(fd, data, sizeof(data)) > 0)
		;
	printf("%.0f\n", sent * 8e9 / (now() - began));
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void ask(const char *address, int port, int count)
{
	uint64_t *took = calloc(count, sizeof(*took)), sum = 0;
	int fd = connected(address, port);
	char byte = 0;

	for (int i = 0; i < count; i++) {
		uint64_t began = now();

		if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
			fail("no answer");
		took[i] = now() - began;
	}
	qsort(took, count, sizeof(*took), by_value);
	for (int i = count / 4; i < count - count / 4; i++)
		sum += took[i];
	printf("%.1f\n", (double)sum / (count - 2 * (count / 4)));
}

static double seconds_of(const struct timeval *time)
{
	return time->tv_sec + time->tv_usec / 1e6;
}

static void blast(const char *address, int port, int ports, double seconds, double rate)
{
	struct sockaddr_in there[BATCH];
	struct mmsghdr messages[BATCH] = {};
	struct iovec data = { .iov_base = "bpfleet", .iov_len = 8 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	uint64_t began = now(), end = began + seconds * 1e9, sent = 0;
	struct rusage usage;

	srand(1);
	for (int i = 0; i < BATCH; i++) {
		there[i] = to(address, port);
		messages[i].msg_hdr = (struct msghdr){ &there[i], sizeof(there[i]), &data, 1, NULL, 0, 0 };
	}
	for (uint64_t time = began; time < end; time = now()) {
		int count;

		if (rate > 0 && sent > (time - began) / 1e9 * rate)
			continue;
		for (int i = 0; i < BATCH; i++)
			there[i].sin_port = htons(port + rand() % ports);
		count = sendmmsg(fd, messages, BATCH, 0);
		if (count < 0 && errno != EPERM && errno != ENOBUFS && errno != ECONNREFUSED)
			fail("cannot send");
		sent += count > 0 ? count : 0;
	}
	getrusage(RUSAGE_SELF, &usage);
	printf("%llu %.6f\n", (unsigned long long)sent, seconds_of(&usage.ru_utime) + seconds_of(&usage.ru_stime));
}

static int socket_in(const char *netns)
{
	int fd, ns = open(netns, O_RDONLY | O_CLOEXEC);

	if (ns < 0 || setns(ns, CLONE_NEWNET))
		fail(netns);
	close(ns);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0)
		fail("no socket");
	return fd;
}

static void probe(const char *from, const char *in, const char *address, int port, int interval)
{
	struct sockaddr_in here = to("0.0.0.0", port), there = to(address, port);
	int sender = socket_in(from), receiver = socket_in(in), passes = -1;
	struct pollfd input = { .fd = 0, .events = POLLIN };

	if (bind(receiver, (void *)&here, sizeof(here)))
		fail("cannot bind");
	while (!poll(&input, 1, interval)) {
		uint64_t began = now(), got;
		int arrived = 0;

		if (sendto(sender, &began, sizeof(began), 0, (void *)&there, sizeof(there)) < 0 && errno != EPERM)
			fail("cannot send");
		while (recv(receiver, &got, sizeof(got), MSG_DONTWAIT) == sizeof(got))
			arrived |= got == began;
		if (arrived != passes) {
			passes = arrived;
			printf("%s %llu\n", arrived ? "+" : "-", (unsigned long long)began);
			fflush(stdout);
		}
	}
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "probe") && argc == 7) {
		probe(argv[2], argv[3], argv[4], atoi(argv[5]), atoi(argv[6]));
		return 0;
	}
	if (argc > 3)
		stay_on(atoi(argv[2]));
	if (!strcmp(mode, "serve") && argc == 4)
		serve(atoi(argv[3]));
	else if (!strcmp(mode, "send") && argc == 6)
		send_for(argv[3], atoi(argv[4]), atof(argv[5]));
	else if (!strcmp(mode, "ask") && argc == 6)
		ask(argv[3], atoi(argv[4]), atoi(argv[5]));
	else if (!strcmp(mode, "blast") && argc == 8)
		blast(argv[3], atoi(argv[4]), atoi(argv[5]), atof(argv[6]), atof(argv[7]));
	else
		fprintf(stderr, "usage: see traffic.c\n");
	return strcmp(mode, "serve") && argc < 6;
}
