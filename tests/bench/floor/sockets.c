// sockets N: makes N connected TCP sockets over loopback in the namespace it runs in, and says "ready". For each line of its
// input it measures what a list of them costs that nobody looks at, which is the question and a loop of recv until the end, and
// prints the CPU time in microseconds. It keeps the sockets until its input ends.
#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

// Sockets of one process; more of them would need another limit of descriptors.
#define PER_PROCESS 16000

static char buffer[64 * 1024];

static double cpu(void) {
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void fail(const char *what) {
	perror(what);
	exit(1);
}

static void make(int pairs, int port) {
	struct sockaddr_in address = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}};
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (void *)&address, sizeof address) || listen(listener, 128)) fail("listen");
	for (int i = 0; i < pairs; i++) {
		int client = socket(AF_INET, SOCK_STREAM, 0);
		if (client < 0 || connect(client, (void *)&address, sizeof address)) fail("connect");
		if (accept(listener, 0, 0) < 0) fail("accept");
	}
	close(listener);
}

// Both IP versions at once, every state but LISTEN, no extensions: what the daemon asks.
static long list(int netlink) {
	struct {
		struct nlmsghdr head;
		struct inet_diag_req question;
	} ask = {{sizeof ask, TCPDIAG_GETSOCK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {0}};
	ask.question.idiag_states = 0x1ffe & ~(1 << 10);
	if (send(netlink, &ask, sizeof ask, 0) < 0) fail("send");
	for (long bytes = 0;;) {
		ssize_t length = recv(netlink, buffer, sizeof buffer, 0);
		if (length <= 0) fail("recv");
		int type = ((struct nlmsghdr *)buffer)->nlmsg_type;
		if (type == NLMSG_DONE || type == NLMSG_ERROR) return bytes;
		bytes += length;
	}
}

int main(int count, char **words) {
	if (count < 2) return 2;
	int left = atoi(words[1]) / 2;
	for (int port = 8000; left > 0; port++) {
		int pairs = left < PER_PROCESS / 2 ? left : PER_PROCESS / 2, ready[2];
		char byte;
		if (pipe(ready)) fail("pipe");
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			make(pairs, port);
			if (write(ready[1], "x", 1) != 1) fail("write");
			pause();
		}
		close(ready[1]);
		if (read(ready[0], &byte, 1) != 1) return 1;
		left -= pairs;
	}
	int netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
	puts("ready");
	fflush(stdout);
	for (char line[16]; fgets(line, sizeof line, stdin);) {
		double start = cpu();
		list(netlink);
		printf("%.1f\n", cpu() - start);
		fflush(stdout);
	}
	return 0;
}
