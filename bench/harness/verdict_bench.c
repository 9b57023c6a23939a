/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Times BPF programs packet by packet.
 *
 *   verdict_bench CPU ROUNDS WARM CALLS EMPTY_FD NAME:FD:FILE ...
 *
 * The descriptors are of loaded programs and inherited (or paths of pinned ones). A FILE holds one frame and what is
 * different in each packet, so that the packets themselves hardly touch the caches: three 32-bit numbers in this
 * machine's byte order (the frame's length, and where and how long the difference is), the frame, and the differences
 * one after the other. They are used in order, and from the start again at the end.
 * Pinned to one CPU, each round makes CALLS calls of BPF_PROG_TEST_RUN with repeat 1 for every variant, and for the
 * empty program, one variant after the other, each call with the next packet, so that a program that rewrites
 * packets always gets a fresh one. WARM calls that do not count come before, so that a variant finds in the caches what
 * its own packets leave there, not what the variant before it did. A round's result is the interquartile mean of the
 * kernel's durations, less that of the empty program; a variant's is the median of its rounds. Small and in C, because the caller's own cache footprint counts.
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
#define FRAME_LIMIT 2048

struct variant {
	const char *name;
	int fd;
	uint8_t frame[FRAME_LIMIT];
	struct {
		uint32_t length, patch_at, patch_length;
	} shape;
	uint8_t *patches;
	size_t count;
	size_t next;
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

static void read_packets(struct variant *variant, const char *path)
{
	FILE *file = fopen(path, "rb");
	long start, end;

	if (!file || fread(&variant->shape, sizeof(variant->shape), 1, file) != 1 ||
	    variant->shape.length > FRAME_LIMIT || !variant->shape.patch_length ||
	    variant->shape.patch_at + variant->shape.patch_length > variant->shape.length ||
	    fread(variant->frame, variant->shape.length, 1, file) != 1)
		fail("cannot read", path);
	start = ftell(file);
	if (start < 0 || fseek(file, 0, SEEK_END) || (end = ftell(file)) <= start || fseek(file, start, SEEK_SET))
		fail("cannot read", path);
	variant->count = (end - start) / variant->shape.patch_length;
	variant->patches = malloc(end - start);
	if (!variant->patches || !variant->count || fread(variant->patches, end - start, 1, file) != 1)
		fail("cannot read", path);
	fclose(file);
}

static uint32_t call(struct variant *variant)
{
	static uint8_t out[FRAME_LIMIT + 256];
	LIBBPF_OPTS(bpf_test_run_opts, options);

	memcpy(variant->frame + variant->shape.patch_at,
	       variant->patches + variant->next * variant->shape.patch_length, variant->shape.patch_length);
	variant->next = (variant->next + 1) % variant->count;
	options.data_in = variant->frame;
	options.data_size_in = variant->shape.length;
	options.data_out = out;
	options.data_size_out = sizeof(out);
	options.repeat = 1;
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
	int count = argc - 6, rounds, warm, calls;
	cpu_set_t cpus;

	if (argc < 7 || count > VARIANTS_LIMIT) {
		fprintf(stderr, "usage: verdict_bench CPU ROUNDS WARM CALLS EMPTY_FD NAME:FD:FILE ...\n");
		return 1;
	}
	rounds = atoi(argv[2]);
	warm = atoi(argv[3]);
	calls = atoi(argv[4]);
	if (rounds < 1 || warm < 0 || calls < 4) {
		fprintf(stderr, "verdict_bench: at least 1 round of 4 calls\n");
		return 1;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		fail("cannot stay on CPU", argv[1]);
	/* Whatever else ran in between would leave its own data in the caches. The whole takes about a second. */
	if (sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 1 }))
		fail("cannot run in real time on CPU", argv[1]);

	for (int i = 0; i < count; i++) {
		struct variant *variant = &variants[i];
		char *text = argv[6 + i], *fd, *path;

		variant->name = strtok(text, ":");
		fd = strtok(NULL, ":");
		path = strtok(NULL, "");
		if (!variant->name || !fd || !path) {
			fprintf(stderr, "verdict_bench: %s is not NAME:FD:FILE\n", text);
			return 1;
		}
		variant->fd = open_program(fd);
		read_packets(variant, path);
	}
	/* The empty program comes last, with the first variant's packets. */
	variants[count].name = "empty";
	variants[count].fd = open_program(argv[5]);
	memcpy(variants[count].frame, variants[0].frame, sizeof(variants[0].frame));
	variants[count].shape = variants[0].shape;
	variants[count].patches = variants[0].patches;
	variants[count].count = variants[0].count;
	for (int i = 0; i <= count; i++) {
		variants[i].durations = calloc(calls, sizeof(uint32_t));
		variants[i].rounds = calloc(rounds, sizeof(double));
		if (!variants[i].durations || !variants[i].rounds)
			fail("no memory for", variants[i].name);
	}

	for (int round = 0; round < rounds; round++) {
		double empty;

		for (int i = 0; i <= count; i++) {
			for (int n = 0; n < warm; n++)
				call(&variants[i]);
			for (int n = 0; n < calls; n++)
				variants[i].durations[n] = call(&variants[i]);
		}
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
