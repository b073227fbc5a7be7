// packets udp|tcp N FROM TO ADDRESS: sends to ADDRESS, which is in the namespace of file TO, from that of file FROM, and prints
// what that took in nanoseconds.
//
// udp: CPU time for each of N datagrams of 64 bytes. They are received by the same process, in between, so that none is dropped.
// tcp: elapsed time for each KiB of N KiB that another process receives.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, CHUNK = 64 << 10 };

static char bytes[CHUNK];

static void check(long result, const char *what) {
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static double now(clockid_t clock) {
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int socket_in(const char *namespace, int type) {
	int file = open(namespace, O_RDONLY);
	check(file, namespace);
	check(setns(file, CLONE_NEWNET), "setns");
	close(file);
	int made = socket(AF_INET, type, 0);
	check(made, "socket");
	return made;
}

static double udp(long n, int from, int to) {
	double start = now(CLOCK_PROCESS_CPUTIME_ID);
	for (long sent = 0; sent < n; sent += BATCH) {
		for (int i = 0; i < BATCH; i++) check(send(from, bytes, 64, 0), "send");
		for (int i = 0; i < BATCH; i++) check(recv(to, bytes, sizeof bytes, 0), "recv");
	}
	return (now(CLOCK_PROCESS_CPUTIME_ID) - start) / n;
}

static double tcp(long n, int from, int to) {
	int child = fork();
	check(child, "fork");
	if (!child) {
		close(from);
		int received = accept(to, NULL, NULL);
		while (recv(received, bytes, sizeof bytes, 0) > 0);
		exit(0);
	}
	double start = now(CLOCK_MONOTONIC);
	for (long sent = 0; sent < n << 10;) {
		long more = send(from, bytes, sizeof bytes, 0);
		check(more, "send");
		sent += more;
	}
	close(from);
	close(to);
	waitpid(child, NULL, 0);
	return (now(CLOCK_MONOTONIC) - start) / n;
}

int main(int count, char **words) {
	if (count != 6) return 2;
	int stream = !strcmp(words[1], "tcp"), type = stream ? SOCK_STREAM : SOCK_DGRAM;
	int to = socket_in(words[4], type), from = socket_in(words[3], type);
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(7000)};
	inet_pton(AF_INET, words[5], &address.sin_addr);
	int one = 1;
	setsockopt(to, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	check(bind(to, (void *)&address, sizeof address), "bind");
	if (stream) check(listen(to, 1), "listen");
	check(connect(from, (void *)&address, sizeof address), "connect");
	long n = atol(words[2]);
	if (!stream) udp(BATCH * 4, from, to);
	printf("%.1f\n", stream ? tcp(n, from, to) : udp(n, from, to));
}
