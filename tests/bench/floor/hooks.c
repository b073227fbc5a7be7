/* Attaches programs that do nothing, to show what it costs to be called: `hooks raw_tracepoint:NAME trace_fentry:ID trace_fexit:ID ...`,
 * where ID is that of the function in the kernel's type information. Says "ready", and goes on until its input ends. */
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int attach(const char *how, const char *where)
{
	struct bpf_insn nothing[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K},
		{.code = BPF_JMP | BPF_EXIT},
	};
	union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT};
	int program, by_name = !strcmp(how, "raw_tracepoint");

	if (!by_name) {
		attr.prog_type = BPF_PROG_TYPE_TRACING;
		attr.expected_attach_type = strcmp(how, "trace_fexit") ? BPF_TRACE_FENTRY : BPF_TRACE_FEXIT;
		attr.attach_btf_id = atoi(where);
	}
	attr.insns = (unsigned long)nothing;
	attr.insn_cnt = 2;
	attr.license = (unsigned long)"Dual BSD/GPL";
	program = bpf(BPF_PROG_LOAD, &attr);
	if (program < 0)
		return -1;
	memset(&attr, 0, sizeof(attr));
	attr.raw_tracepoint.prog_fd = program;
	attr.raw_tracepoint.name = by_name ? (unsigned long)where : 0;
	return bpf(BPF_RAW_TRACEPOINT_OPEN, &attr);
}

int main(int count, char **hooks)
{
	for (int i = 1; i < count; i++) {
		char *where = strchr(hooks[i], ':');

		if (!where)
			return 2;
		*where++ = 0;
		if (attach(hooks[i], where) < 0) {
			fprintf(stderr, "%s %s: ", hooks[i], where);
			perror("");
			return 1;
		}
	}
	puts("ready");
	fflush(stdout);
	while (getchar() != EOF)
		;
	return 0;
}
