/* Children that ended but were not waited for: their exit codes and signals stay readable. */
#include "guest.h"

int main(int argc, char **argv)
{
	/* exit code, or minus a signal */
	static const int ends[] = { 0, 7, 255, -SIGKILL, -SIGUSR1, -SIGTERM };
	enum { N = sizeof(ends) / sizeof(*ends) };
	pid_t kids[N];
	siginfo_t info;
	int status;

	guest_init(argc, argv);
	for (int i = 0; i < N; i++) {
		kids[i] = MUST(fork());
		if (!kids[i]) {
			sigset_t none;

			sigemptyset(&none);
			sigprocmask(SIG_SETMASK, &none, NULL);
			if (i == 2)
				setpgid(0, 0);
			if (ends[i] < 0)
				raise(-ends[i]);
			_exit(ends[i]);
		}
		/* Wait for the end, leave the zombie. */
		MUST(waitid(P_PID, kids[i], &info, WEXITED | WNOWAIT));
	}
	guest_ready_wait();
	if (SPOIL("reaped"))
		waitpid(kids[1], NULL, 0);
	for (int i = 0; i < N; i++) {
		int got = waitpid(kids[i], &status, WNOHANG);

		SAME("zombie", got, kids[i]);
		if (SPOIL("status") && i == 3)
			status = 0;
		if (ends[i] < 0)
			CHECK(WIFSIGNALED(status) && WTERMSIG(status) == -ends[i], "zombie %d: status 0x%x, not signal %d", i, status, -ends[i]);
		else
			CHECK(WIFEXITED(status) && WEXITSTATUS(status) == ends[i], "zombie %d: status 0x%x, not exit %d", i, status, ends[i]);
	}
	guest_pass();
}
