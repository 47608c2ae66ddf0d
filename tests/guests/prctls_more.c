/* Rarer prctls: THP disabled, io_flusher, memory-fault kill policy, speculation, CPUID/TSC faulting. */
#include "guest.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#define PR_GET_IO_FLUSHER 58
#endif

static int io_flusher;

static void check(const char *spoil)
{
	int tsc = 0;

	if (SPOIL("thp") && spoil)
		prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
	if (SPOIL("mce") && spoil)
		prctl(PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0);
	if (SPOIL("tsc") && spoil)
		prctl(PR_SET_TSC, PR_TSC_ENABLE);
	if (SPOIL("io-flusher") && spoil)
		io_flusher++;
	SAME("THP disabled", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
	SAME("memory-fault kill policy", prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), PR_MCE_KILL_EARLY);
	MUST(prctl(PR_GET_TSC, &tsc));
	SAME("TSC", tsc, PR_TSC_SIGSEGV);
	SAME("io_flusher", prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0), io_flusher);
}

static void child(UNUSED void *arg)
{
	MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
	/* Both need CAP_SYS_RESOURCE; without it the answer is -1 before and after. */
	prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
	io_flusher = prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0);
	/* Nothing in this child may read the clock through the vDSO from here on. */
	MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
	guest_child_ready_wait();
	check("");
}

int main(int argc, char **argv)
{
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	guest_ready_wait();
	SAME("THP disabled", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 0);
	SAME("memory-fault kill policy", prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), PR_MCE_KILL_DEFAULT);
	guest_child_finish(kid);
	guest_pass();
}
