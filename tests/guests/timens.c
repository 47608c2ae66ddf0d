/* A tree in a time namespace of its own: its clocks are 1,000,000 s (monotonic) and 2,000,000 s (boot) ahead, and go on so. */
#include "guest.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#define AHEAD "monotonic 1000000 0\nboottime 2000000 0\n"

static long long now(clockid_t clock)
{
	struct timespec t;

	MUST(clock_gettime(clock, &t));
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static ino_t ns(const char *path)
{
	struct stat st;

	MUST(stat(path, &st));
	return st.st_ino;
}

/* Clocks go on: not back, and not further than the wall clock did (give or take one second). */
static void check(clockid_t clock, long long was, long long wall, const char *name)
{
	long long passed = now(clock) - was, most = now(CLOCK_REALTIME) - wall + 1000000000LL;

	CHECK(passed >= 0 && passed < most, "%s went on by %lld ns, not 0 to %lld", name, passed, most);
}

int main(int argc, char **argv)
{
	long long mono, boot, wall, apart, limit = 1000000LL * 1000000000LL;
	struct timespec t;
	char path[64];
	pid_t child;
	int fd, status;

	guest_init(argc, argv);
	if (ns("/proc/self/ns/time") == ns("/proc/1/ns/time")) {
		if (getenv("TIMENS"))
			guest_skip("execve does not enter the new time namespace (Linux before 6.1)");
		if (unshare(CLONE_NEWTIME))
			guest_skip("no time namespaces");
		fd = MUST(open("/proc/self/timens_offsets", O_WRONLY));
		SAME("offsets", write(fd, AHEAD, strlen(AHEAD)), strlen(AHEAD));
		MUST(close(fd));
		MUST(setenv("TIMENS", "1", 1));
		MUST(execv("/proc/self/exe", argv));
	}
	mono = now(CLOCK_MONOTONIC);
	boot = now(CLOCK_BOOTTIME);
	wall = now(CLOCK_REALTIME);
	CHECK(mono > limit && boot > 2 * limit, "the offsets do not show");
	child = MUST(fork());
	if (!child) {
		MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
		for (;;)
			pause();
	}
	guest_ready_wait();
	if (SPOIL("monotonic"))
		mono += limit;
	check(CLOCK_MONOTONIC, mono, wall, "the monotonic clock");
	if (SPOIL("boot"))
		boot -= limit;
	check(CLOCK_BOOTTIME, boot, wall, "the boot-time clock");
	/* the vDSO's page of offsets is the namespace's too */
	MUST(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t));
	if (SPOIL("syscall"))
		t.tv_sec -= 1000000;
	apart = now(CLOCK_MONOTONIC) - (t.tv_sec * 1000000000LL + t.tv_nsec);
	CHECK(apart >= 0 && apart < 1000000000LL, "vDSO and system call are %lld ns apart", apart);
	snprintf(path, sizeof(path), "/proc/%d/ns/time", child);
	SAME("time namespace of the child", ns(SPOIL("child") ? "/proc/1/ns/time" : path), ns("/proc/self/ns/time"));
	MUST(kill(child, SIGKILL));
	MUST(waitpid(child, &status, 0));
	guest_pass();
}
