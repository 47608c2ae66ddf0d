/* The vDSO: threads call clock_gettime, gettimeofday, time and getcpu in a loop across the freeze; clocks go forward. */
#include "guest.h"
#include <sys/auxv.h>
#include <sys/utsname.h>

static volatile int stop, bad;
static volatile unsigned long rounds;

static void *loop(UNUSED void *arg)
{
	struct timespec last = { 0, 0 }, now;
	struct timeval tv;

	while (!stop) {
		if (clock_gettime(CLOCK_MONOTONIC, &now) || gettimeofday(&tv, NULL) || time(NULL) < 1000000 || sched_getcpu() < 0)
			bad = 1;
		if (now.tv_sec < last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec < last.tv_nsec))
			bad = 2;
		last = now;
		rounds++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned long before;
	const char *base;
	struct utsname then, now;
	pthread_t t;

	guest_init(argc, argv);
	base = (const char *)getauxval(AT_SYSINFO_EHDR);
	CHECK(base, "no vDSO");
	CHECK(!pthread_create(&t, NULL, loop, NULL), "no thread");
	while (rounds < 1000)
		usleep(100);
	MUST(uname(&then));
	guest_ready_wait();
	MUST(uname(&now));
	if (SPOIL("gone"))
		stop = 1;
	if (SPOIL("moved"))
		base += 16 * PAGE;
	/* that of another kernel comes back as code that leads to this one's */
	CHECK(strstr(guest_map(base), strcmp(then.release, now.release) ? " r-xp " : "[vdso]"), "the vDSO is not where it was: %s", guest_map(base));
	CHECK(!memcmp(base, "\177ELF", 4), "no ELF header at the vDSO");
	before = rounds;
	for (int i = 0; i < 3000 && rounds < before + 1000; i++)
		usleep(1000);
	CHECK(rounds >= before + 1000, "the loop does not go on");
	stop = 1;
	pthread_join(t, NULL);
	SAME("bad answers", bad, 0);
	guest_pass();
}
