/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Times BPF programs packet by packet.
 *
 *   verdict_bench CPU ROUNDS CALLS EMPTY_FD NAME:FD:FILE ...
 *
 * The descriptors are of loaded programs and inherited (or paths of pinned ones). A FILE holds frames, each after its
 * length as a 32-bit number in this machine's byte order; it is read in order and from the start again at its end.
 * Pinned to one CPU, each round makes CALLS calls of BPF_PROG_TEST_RUN with repeat 1 for every variant, and for the
 * empty program, interleaved in chunks, each call with the next frame, so that a program that rewrites packets always
 * gets a fresh one. A round's result is the interquartile mean of the kernel's durations, less that of the empty
 * program; a variant's is the median of its rounds. Small and in C, because the caller's own cache footprint counts.
 *
 * Prints {"empty_ns": n, "variants": {NAME: {"ns": median, "rounds": [...]}}}. Exit status 1 with a message otherwise.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bpf/bpf.h>

#define VARIANTS_LIMIT 32
#define CHUNK 200
#define FRAME_LIMIT 2048

struct variant {
	const char *name;
	int fd;
	uint8_t *frames;
	size_t size;
	size_t at;
	uint32_t *durations;
	double *rounds;
};

static void fail(const char *what, const char *which)
{
	fprintf(stderr, "verdict_bench: %s %s: %s\n", what, which, strerror(errno));
	exit(1);
}

static int open_program(const char *text)
{
	int fd = text[0] == '/' ? bpf_obj_get(text) : atoi(text);

	if (fd < 0)
		fail("cannot open", text);
	return fd;
}

static void read_frames(struct variant *variant, const char *path)
{
	FILE *file = fopen(path, "rb");
	long size;

	if (!file || fseek(file, 0, SEEK_END) || (size = ftell(file)) <= 0 || fseek(file, 0, SEEK_SET))
		fail("cannot read", path);
	variant->frames = malloc(size);
	variant->size = size;
	if (!variant->frames || fread(variant->frames, 1, size, file) != (size_t)size)
		fail("cannot read", path);
	fclose(file);
}

static uint32_t call(struct variant *variant)
{
	static uint8_t out[FRAME_LIMIT + 256];
	LIBBPF_OPTS(bpf_test_run_opts, options);
	uint32_t length;

	if (variant->at >= variant->size)
		variant->at = 0;
	memcpy(&length, variant->frames + variant->at, sizeof(length));
	options.data_in = variant->frames + variant->at + sizeof(length);
	options.data_size_in = length;
	options.data_out = out;
	options.data_size_out = sizeof(out);
	options.repeat = 1;
	variant->at += sizeof(length) + length;
	if (bpf_prog_test_run_opts(variant->fd, &options))
		fail("cannot run", variant->name);
	return options.duration;
}

static int by_duration(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The mean of the middle half: without the interrupts at one end and the luck at the other. */
static double interquartile_mean(uint32_t *durations, int count)
{
	double sum = 0;

	qsort(durations, count, sizeof(*durations), by_duration);
	for (int i = count / 4; i < count - count / 4; i++)
		sum += durations[i];
	return sum / (count - 2 * (count / 4));
}

static double median(const double *values, int count)
{
	double sorted[count];

	memcpy(sorted, values, sizeof(sorted));
	qsort(sorted, count, sizeof(*sorted), by_value);
	return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

int main(int argc, char **argv)
{
	struct variant variants[VARIANTS_LIMIT + 1] = {};
	int count = argc - 5, rounds, calls;
	cpu_set_t cpus;

	if (argc < 6 || count > VARIANTS_LIMIT) {
		fprintf(stderr, "usage: verdict_bench CPU ROUNDS CALLS EMPTY_FD NAME:FD:FILE ...\n");
		return 1;
	}
	rounds = atoi(argv[2]);
	calls = atoi(argv[3]) / CHUNK * CHUNK;
	if (rounds < 1 || calls < CHUNK) {
		fprintf(stderr, "verdict_bench: at least 1 round of %d calls\n", CHUNK);
		return 1;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		fail("cannot stay on CPU", argv[1]);

	for (int i = 0; i < count; i++) {
		struct variant *variant = &variants[i];
		char *text = argv[5 + i], *fd, *path;

		variant->name = strtok(text, ":");
		fd = strtok(NULL, ":");
		path = strtok(NULL, "");
		if (!variant->name || !fd || !path) {
			fprintf(stderr, "verdict_bench: %s is not NAME:FD:FILE\n", text);
			return 1;
		}
		variant->fd = open_program(fd);
		read_frames(variant, path);
	}
	/* The empty program comes last, with the first variant's frames. */
	variants[count].name = "empty";
	variants[count].fd = open_program(argv[4]);
	variants[count].frames = variants[0].frames;
	variants[count].size = variants[0].size;
	for (int i = 0; i <= count; i++) {
		variants[i].durations = calloc(calls, sizeof(uint32_t));
		variants[i].rounds = calloc(rounds, sizeof(double));
		if (!variants[i].durations || !variants[i].rounds)
			fail("no memory for", variants[i].name);
	}

	for (int round = -1; round < rounds; round++) { /* round -1 warms up */
		double empty;

		for (int done = 0; done < calls; done += CHUNK)
			for (int i = 0; i <= count; i++)
				for (int n = 0; n < CHUNK; n++)
					variants[i].durations[done + n] = call(&variants[i]);
		if (round < 0)
			continue;
		empty = interquartile_mean(variants[count].durations, calls);
		variants[count].rounds[round] = empty;
		for (int i = 0; i < count; i++)
			variants[i].rounds[round] = interquartile_mean(variants[i].durations, calls) - empty;
	}

	printf("{\"empty_ns\": %.1f, \"variants\": {", median(variants[count].rounds, rounds));
	for (int i = 0; i < count; i++) {
		printf("%s\"%s\": {\"ns\": %.1f, \"rounds\": [", i ? ", " : "", variants[i].name,
		       median(variants[i].rounds, rounds));
		for (int round = 0; round < rounds; round++)
			printf("%s%.1f", round ? ", " : "", variants[i].rounds[round]);
		printf("]}");
	}
	printf("}}\n");
	return 0;
}
