// drops KIND N SENDERS NAMESPACE: makes the kernel drop packets in the namespace of a file as fast as it can, and prints the CPU
// time for each packet that was sent in nanoseconds, and how many the namespace itself counted meanwhile.
//
// udp4, udp6: N datagrams of each sender to a socket whose receive buffer is full; the kernel counts RcvbufErrors.
// tcp4, tcp6: N segments of each sender to a port that nobody listens to; the kernel answers with a reset, which nobody is there
// for either: two drops and one reset, of which it counts the latter as OutRsts.
//
// Each sender has a CPU of its own. What the packets cost falls into the sender's time, since the loopback device takes them
// through the whole of the kernel before it returns.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 7300, CLOSED = 7299, PAYLOAD = 64, WARM = 1000, MOST = 1024 };

// What the senders share: how many there are, how many are ready, and what each took.
struct shared {
	int senders, ready;
	double took[MOST];
};

static void check(long result, const char *what) {
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static double cpu(void) {
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

// The number under `name` in two lines of a table: one of names, one of numbers, which begin with the section.
static long in_table(const char *file, const char *section, const char *name) {
	static char names[8192], numbers[8192];
	char *a, *b;
	FILE *from = fopen(file, "r");
	if (!from) return 0;
	while (fgets(names, sizeof names, from) && fgets(numbers, sizeof numbers, from)) {
		if (strncmp(names, section, strlen(section))) continue;
		char *known = strtok_r(names, " \n", &a), *number = strtok_r(numbers, " \n", &b);
		while (known && number && strcmp(known, name)) {
			known = strtok_r(NULL, " \n", &a);
			number = strtok_r(NULL, " \n", &b);
		}
		fclose(from);
		return number ? atol(number) : 0;
	}
	fclose(from);
	return 0;
}

// The number in the line that begins with `name`.
static long in_lines(const char *file, const char *name) {
	char known[64];
	long number;
	FILE *from = fopen(file, "r");
	if (!from) return 0;
	while (fscanf(from, "%63s %ld", known, &number) == 2 && strcmp(known, name)) number = 0;
	fclose(from);
	return number;
}

static long counted(int tcp, int family) {
	if (tcp) return in_table("/proc/self/net/snmp", "Tcp:", "OutRsts");
	if (family == AF_INET) return in_table("/proc/self/net/snmp", "Udp:", "RcvbufErrors");
	return in_lines("/proc/self/net/snmp6", "Udp6RcvbufErrors");
}

static socklen_t address(struct sockaddr_storage *to, int family, int port) {
	struct sockaddr_in *in = (void *)to;
	struct sockaddr_in6 *in6 = (void *)to;
	memset(to, 0, sizeof *to);
	to->ss_family = family;
	if (family == AF_INET) {
		in->sin_port = htons(port);
		in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		return sizeof *in;
	}
	in6->sin6_port = htons(port);
	in6->sin6_addr = in6addr_loopback;
	return sizeof *in6;
}

static unsigned sum(const void *bytes, int length) {
	const unsigned short *words = bytes;
	unsigned total = 0;
	for (; length > 1; length -= 2) total += *words++;
	return total;
}

// The first segment of a connection to nobody, with all headers and the checksum that a receiver wants to see.
static int segment(char *bytes, int family, int sender) {
	struct iphdr *ip = (void *)bytes;
	struct ip6_hdr *ip6 = (void *)bytes;
	int head = family == AF_INET ? sizeof *ip : sizeof *ip6;
	struct tcphdr *tcp = (void *)(bytes + head);
	*tcp = (struct tcphdr){.source = htons(20000 + sender), .dest = htons(CLOSED), .doff = 5, .syn = 1, .window = htons(1024)};
	unsigned total = sum(tcp, sizeof *tcp) + htons(IPPROTO_TCP) + htons(sizeof *tcp);
	if (family == AF_INET) {
		*ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP};
		ip->saddr = ip->daddr = htonl(INADDR_LOOPBACK);
		total += 2 * sum(&ip->saddr, 4);
	} else {
		*ip6 = (struct ip6_hdr){.ip6_src = in6addr_loopback, .ip6_dst = in6addr_loopback};
		ip6->ip6_flow = htonl(6 << 28);
		ip6->ip6_plen = htons(sizeof *tcp);
		ip6->ip6_nxt = IPPROTO_TCP;
		ip6->ip6_hlim = 64;
		total += 2 * sum(&in6addr_loopback, 16);
	}
	while (total >> 16) total = (total & 0xffff) + (total >> 16);
	tcp->check = ~total;
	return head + sizeof *tcp;
}

static void send_all(long n, int from, const char *bytes, int size, const struct sockaddr_storage *to, socklen_t length) {
	for (long i = 0; i < n; i++) check(sendto(from, bytes, size, 0, (const void *)to, length), "sendto");
}

static double sender(long n, int tcp, int family, int number, struct shared *shared) {
	static char bytes[256];
	struct sockaddr_storage to;
	// A raw socket is bound to no port; it is given no copies, since its protocol is none that is sent.
	socklen_t length = address(&to, family, tcp ? 0 : PORT + number);
	int size = tcp ? segment(bytes, family, number) : PAYLOAD;
	int from = tcp ? socket(family, SOCK_RAW, IPPROTO_RAW) : socket(family, SOCK_DGRAM, 0);
	check(from, "socket");
	if (!tcp) {
		int full = socket(family, SOCK_DGRAM, 0), room = 2304;
		check(full, "socket");
		check(setsockopt(full, SOL_SOCKET, SO_RCVBUF, &room, sizeof room), "SO_RCVBUF");
		check(bind(full, (void *)&to, length), "bind");
	}
	send_all(WARM, from, bytes, size, &to, length);
	__atomic_add_fetch(&shared->ready, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&shared->ready, __ATOMIC_SEQ_CST) < shared->senders) sched_yield();
	double start = cpu();
	send_all(n, from, bytes, size, &to, length);
	return (cpu() - start) / n;
}

static void on_cpu(int number) {
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(number, &set);
	sched_setaffinity(0, sizeof set, &set);
}

int main(int count, char **words) {
	if (count != 5) return 2;
	int tcp = !strncmp(words[1], "tcp", 3), family = strchr(words[1], '6') ? AF_INET6 : AF_INET;
	long n = atol(words[2]);
	int senders = atoi(words[3]), netns = open(words[4], O_RDONLY), status;
	check(netns, words[4]);
	check(setns(netns, CLONE_NEWNET), "setns");
	if (senders < 1 || senders > MOST) return 2;
	struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared->senders = senders;
	long before = counted(tcp, family);
	for (int i = 0; i < senders; i++) {
		int child = fork();
		check(child, "fork");
		if (child) continue;
		// One that fails must not leave the others behind, which would wait for it.
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		on_cpu(i);
		shared->took[i] = sender(n, tcp, family, i, shared);
		exit(0);
	}
	while (wait(&status) > 0)
		if (status) exit(1);
	double took = 0;
	for (int i = 0; i < senders; i++) took += shared->took[i] / senders;
	printf("%.1f %ld\n", took, counted(tcp, family) - before);
}
