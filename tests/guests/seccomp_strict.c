/* Seccomp strict mode: children that may only read, write and exit still wait in their read, and still may only that. */
#include "guest.h"
#include <linux/seccomp.h>

struct kid {
	pid_t pid;
	int order[2], answer[2];
};

static void start(struct kid *k, int loose)
{
	char c;

	MUST(pipe(k->order));
	MUST(pipe(k->answer));
	k->pid = MUST(fork());
	if (!k->pid) {
		if (!loose)
			MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
		syscall(SYS_write, k->answer[1], "r", 1);
		while (syscall(SYS_read, k->order[0], &c, 1) != 1)
			;
		if (c == 'b')
			syscall(SYS_getppid);
		syscall(SYS_write, k->answer[1], &c, 1);
		syscall(SYS_exit, 5);
	}
	SAME("read", read(k->answer[0], &c, 1), 1);
}

static int finish(struct kid *k, const char *order)
{
	char path[64];
	int status;

	snprintf(path, sizeof(path), "/proc/%d/status", k->pid);
	SAME("seccomp mode of the child", guest_field(guest_slurp(path), "Seccomp:", 10), 1);
	SAME("written", write(k->order[1], order, 1), 1);
	SAME("child", waitpid(k->pid, &status, 0), k->pid);
	return status;
}

int main(int argc, char **argv)
{
	struct kid good, bad;
	char c;
	int status;

	guest_init(argc, argv);
	start(&good, 0);
	start(&bad, SPOIL("loose"));
	guest_ready_wait();
	if (SPOIL("killed"))
		kill(good.pid, SIGKILL);
	status = finish(&good, "g");
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5, "the obedient child ended with 0x%x", status);
	SAME("answer", read(good.answer[0], &c, 1), 1);
	status = finish(&bad, "b");
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the forbidden call was allowed: 0x%x", status);
	guest_pass();
}
