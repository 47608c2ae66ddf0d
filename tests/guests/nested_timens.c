/* A task below the root in a time namespace of its own, and a child of it: clocks 1,000,000 s ahead of the root's go on there. */
#include "guest.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#define AHEAD "monotonic 1000000 0\nboottime 2000000 0\n"

static long long now(clockid_t clock)
{
	struct timespec t;

	MUST(clock_gettime(clock, &t));
	return t.tv_sec;
}

static ino_t space(const char *whose)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%s/ns/time", whose);
	MUST(stat(path, &st));
	return st.st_ino;
}

static void check(long long mono, long long boot)
{
	if (SPOIL("monotonic"))
		mono += 1000000;
	if (SPOIL("boot"))
		boot += 1000000;
	CHECK(now(CLOCK_MONOTONIC) >= mono && now(CLOCK_MONOTONIC) < mono + 600, "monotonic clock was %lld and is %lld", mono,
	      now(CLOCK_MONOTONIC));
	CHECK(now(CLOCK_BOOTTIME) >= boot && now(CLOCK_BOOTTIME) < boot + 600, "boot-time clock was %lld and is %lld", boot,
	      now(CLOCK_BOOTTIME));
}

static void innermost(UNUSED void *arg)
{
	long long mono = now(CLOCK_MONOTONIC), boot = now(CLOCK_BOOTTIME);

	guest_child_ready_wait();
	check(mono, boot);
}

static void ahead(void *arg)
{
	long long mono, boot;
	int handle = *(int *)arg;
	pid_t child;

	MUST(setns(handle, CLONE_NEWTIME));
	MUST(close(handle));
	mono = now(CLOCK_MONOTONIC);
	boot = now(CLOCK_BOOTTIME);
	child = guest_child(innermost, NULL);
	guest_child_ready_wait();
	check(mono, boot);
	guest_child_finish(child);
}

/* Makes the namespace: nobody else may be the parent of tasks in another one than its own. */
static int make(void)
{
	int fd, pair[2], status;
	char path[64];
	pid_t maker;

	MUST(pipe(pair));
	maker = MUST(fork());
	if (!maker) {
		if (unshare(CLONE_NEWTIME))
			_exit(7);
		fd = MUST(open("/proc/self/timens_offsets", O_WRONLY));
		SAME("offsets", write(fd, AHEAD, strlen(AHEAD)), strlen(AHEAD));
		SAME("ready", write(pair[1], "+", 1), 1);
		for (;;)
			pause();
	}
	close(pair[1]);
	if (read(pair[0], path, 1) != 1) {
		MUST(waitpid(maker, &status, 0));
		if (status == 7 << 8)
			guest_skip("no time namespaces");
		guest_fail("the maker of the namespace ended with 0x%x", status);
	}
	close(pair[0]);
	snprintf(path, sizeof(path), "/proc/%d/ns/time_for_children", maker);
	fd = MUST(open(path, O_RDONLY));
	MUST(kill(maker, SIGKILL));
	MUST(waitpid(maker, &status, 0));
	return fd;
}

int main(int argc, char **argv)
{
	long long mono, boot;
	char who[32];
	pid_t child;
	int handle;

	guest_init(argc, argv);
	handle = make();
	child = guest_child(ahead, &handle);
	close(handle);
	snprintf(who, sizeof(who), "%d", child);
	CHECK(space(who) != space("self"), "the time namespaces are one");
	mono = now(CLOCK_MONOTONIC);
	boot = now(CLOCK_BOOTTIME);

	guest_ready_wait();

	if (SPOIL("space"))
		strcpy(who, "self");
	CHECK(space(who) != space("self"), "the time namespaces are one");
	check(mono, boot);
	guest_child_finish(child);
	guest_pass();
}
