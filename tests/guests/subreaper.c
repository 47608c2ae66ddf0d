/* The subreaper flag: kept by the root, not given to its children, and really adopting afterwards. */
#include "guest.h"

static void child(UNUSED void *arg)
{
	int is;

	guest_child_ready_wait();
	MUST(prctl(PR_GET_CHILD_SUBREAPER, &is));
	SAME("subreaper flag of the child", is, 0);
}

int main(int argc, char **argv)
{
	int is, link[2];
	pid_t kid, mid, lost = 0;

	guest_init(argc, argv);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	kid = guest_child(child, NULL);
	guest_ready_wait();
	if (SPOIL("flag"))
		prctl(PR_SET_CHILD_SUBREAPER, 0);
	MUST(prctl(PR_GET_CHILD_SUBREAPER, &is));
	SAME("subreaper flag", is, 1);
	/* Does it adopt? */
	MUST(pipe(link));
	mid = MUST(fork());
	if (!mid) {
		if (!fork()) {
			lost = getpid();
			_exit(write(link[1], &lost, sizeof(lost)) == sizeof(lost) ? 9 : 3);
		}
		_exit(0);
	}
	SAME("read", read(link[0], &lost, sizeof(lost)), sizeof(lost));
	SAME("middle", waitpid(mid, NULL, 0), mid);
	SAME("adopted", waitpid(lost, NULL, 0), lost);
	guest_child_finish(kid);
	guest_pass();
}
