/* Two tasks with one address space (CLONE_VM without CLONE_THREAD). */
#include "guest.h"

static volatile int from_child, from_parent, child_ready, child_go;
static volatile int *late;
static char stack[64 << 10] __attribute__((aligned(16)));

static int child(UNUSED void *arg)
{
	child_ready = 1;
	/* The wait must not use the thread-local errno of the parent: raw and simple. */
	while (!child_go)
		syscall(SYS_sched_yield);
	from_child = from_parent + 1;
	if (late)
		*late = 5;
	syscall(SYS_exit, 8);
	return 0;
}

int main(int argc, char **argv)
{
	pid_t kid;
	int status;

	guest_init(argc, argv);
	kid = MUST(clone(child, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL));
	while (!child_ready)
		usleep(100);
	guest_ready_wait();
	SAME("same address space", syscall(SYS_kcmp, getpid(), kid, 1, 0, 0), 0);
	from_parent = 41;
	/* A mapping made now must be seen by the other. */
	late = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	child_go = 1;
	SAME("child", waitpid(kid, &status, 0), kid);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 8, "child ended with 0x%x", status);
	if (SPOIL("memory"))
		from_child = 0;
	SAME("written by the child", from_child, 42);
	SAME("written by the child into new memory", *late, 5);
	guest_pass();
}
