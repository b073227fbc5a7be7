// processes fd|io|cpu: for each line of its input it asks the kernel, in the cheapest way that system calls have, for what the
// probe of that name shows of all processes, looks at nothing, and prints the CPU time in microseconds.
//
// fd: of each process one stat of its descriptors, whose size is their number (Linux 6.2), and if there are any, the namespace
// that it is in.
// io, cpu: of each process the namespace, and of each of its threads the file with its own numbers.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct entry {
	unsigned long inode, offset;
	unsigned short length;
	char type, name[];
};

static double cpu(void) {
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

// Calls `each` with every entry that is a number.
static void numbers(int directory, void (*each)(int, const char *)) {
	char buffer[16 << 10];
	for (long length; (length = syscall(SYS_getdents64, directory, buffer, sizeof buffer)) > 0;)
		for (long at = 0; at < length;) {
			struct entry *entry = (void *)(buffer + at);
			if (entry->name[0] >= '0' && entry->name[0] <= '9') each(directory, entry->name);
			at += entry->length;
		}
}

static const char *file;

static void thread(int directory, const char *name) {
	char path[64], text[4096];
	stpcpy(stpcpy(stpcpy(path, name), "/"), file);
	int open = openat(directory, path, O_RDONLY | O_CLOEXEC);
	if (open < 0) return;
	if (read(open, text, sizeof text) < 0) return;
	close(open);
}

static void process(int directory, const char *name) {
	char path[64], link[64];
	struct stat found;
	if (!file) {
		stpcpy(stpcpy(path, name), "/fd");
		if (fstatat(directory, path, &found, 0) < 0 || !found.st_size) return;
	}
	stpcpy(stpcpy(path, name), "/ns/net");
	if (readlinkat(directory, path, link, sizeof link) < 0 || !file) return;
	stpcpy(stpcpy(path, name), "/task");
	int tasks = openat(directory, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (tasks < 0) return;
	numbers(tasks, thread);
	close(tasks);
}

int main(int count, char **words) {
	if (count < 2) return 2;
	file = !strcmp(words[1], "io") ? "io" : !strcmp(words[1], "cpu") ? "schedstat" : 0;
	for (char line[16]; fgets(line, sizeof line, stdin);) {
		double start = cpu();
		int directory = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		numbers(directory, process);
		close(directory);
		printf("%.1f\n", cpu() - start);
		fflush(stdout);
	}
	return 0;
}
