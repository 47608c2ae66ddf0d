/* A child stopped by SIGSTOP (its parent was told), one stopped and not yet reported; both go on with SIGCONT. */
#include "guest.h"

static void child(UNUSED void *arg)
{
	guest_child_ready_wait();
}

static char state_of(pid_t pid)
{
	char path[64];
	const char *text;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	text = guest_slurp(path);
	CHECK(*text, "task %d is gone", pid);
	return strrchr(text, ')')[2];
}

int main(int argc, char **argv)
{
	pid_t told, untold;
	siginfo_t si;
	int status;

	guest_init(argc, argv);
	told = guest_child(child, NULL);
	untold = guest_child(child, NULL);
	MUST(kill(told, SIGSTOP));
	SAME("stopped child", waitpid(told, &status, WUNTRACED), told);
	MUST(kill(untold, SIGSTOP));
	MUST(waitid(P_PID, untold, &si, WSTOPPED | WNOWAIT));
	guest_ready_wait();
	if (SPOIL("running")) {
		kill(told, SIGCONT);
		usleep(10000);
	}
	SAME("state of the child", state_of(told), 'T');
	SAME("state of the other child", state_of(untold), 'T');
	for (int i = 0; i < 2; i++) {
		pid_t kid = i ? untold : told;

		MUST(kill(kid, SIGTERM));
		usleep(1000);
		SAME("state with SIGTERM waiting", state_of(kid), 'T');
		if (!(SPOIL("deaf") && i))
			MUST(kill(kid, SIGCONT));
		for (int n = 0; n < 2000; n++) {
			if (waitpid(kid, &status, WNOHANG) == kid)
				goto next;
			usleep(1000);
		}
		guest_fail("child %d does not go on", kid);
	next:
		SAME("status of the child", status, 0);
	}
	guest_pass();
}
