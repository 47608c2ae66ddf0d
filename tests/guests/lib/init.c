/*
 * The first process of a container: starts the program in its arguments, hands SIGTERM on to it, reaps orphans, and ends as
 * the program ended. It holds nothing that the guest does not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	sigset_t set;
	pid_t child;

	if (argc < 2)
		return 2;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	child = fork();
	if (child < 0)
		return 2;
	if (child == 0) {
		sigprocmask(SIG_UNBLOCK, &set, NULL);
		execv(argv[1], argv + 1);
		_exit(127);
	}
	for (;;) {
		int sig = sigwaitinfo(&set, NULL), status;
		pid_t pid;

		if (sig == SIGTERM)
			kill(child, SIGTERM);
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			if (pid == child)
				_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	}
}
