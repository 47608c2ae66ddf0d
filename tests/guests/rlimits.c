/* Resource limits, soft and hard, of two tasks that differ. Only lowered: raising needs CAP_SYS_RESOURCE. */
#include "guest.h"
#include <sys/resource.h>

static void verify(const struct rlimit *was)
{
	struct rlimit now;

	for (int i = 0; i < RLIM_NLIMITS; i++) {
		MUST(getrlimit(i, &now));
		CHECK(now.rlim_cur == was[i].rlim_cur && now.rlim_max == was[i].rlim_max, "limit %d is %lu/%lu, not %lu/%lu", i,
		      now.rlim_cur, now.rlim_max, was[i].rlim_cur, was[i].rlim_max);
	}
}

static void lower(int what, rlim_t soft, rlim_t hard)
{
	struct rlimit is;

	MUST(getrlimit(what, &is));
	if (hard < is.rlim_max)
		is.rlim_max = hard;
	is.rlim_cur = soft < is.rlim_max ? soft : is.rlim_max;
	MUST(setrlimit(what, &is));
}

static void child(UNUSED void *arg)
{
	struct rlimit was[RLIM_NLIMITS];

	lower(RLIMIT_NOFILE, 99, 111);
	lower(RLIMIT_FSIZE, 1 << 20, 1 << 21);
	lower(RLIMIT_CPU, 1000, 1001);
	for (int i = 0; i < RLIM_NLIMITS; i++)
		MUST(getrlimit(i, &was[i]));
	guest_child_ready_wait();
	if (SPOIL("hard"))
		lower(RLIMIT_NOFILE, 99, 110);
	verify(was);
}

int main(int argc, char **argv)
{
	struct rlimit was[RLIM_NLIMITS];
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	lower(RLIMIT_NOFILE, 500, RLIM_INFINITY);
	lower(RLIMIT_CORE, 0, RLIM_INFINITY);
	lower(RLIMIT_STACK, 4 << 20, RLIM_INFINITY);
	lower(RLIMIT_NPROC, 3000, 4000);
	lower(RLIMIT_MSGQUEUE, 1000, 2000);
	lower(RLIMIT_AS, 1ul << 40, 1ul << 41);
	for (int i = 0; i < RLIM_NLIMITS; i++)
		MUST(getrlimit(i, &was[i]));
	guest_ready_wait();
	if (SPOIL("soft"))
		lower(RLIMIT_CORE, 4096, RLIM_INFINITY);
	verify(was);
	guest_child_finish(kid);
	guest_pass();
}
