/* A child with another root directory, its cwd below it, a file opened in there and one opened outside before. */
#include "guest.h"

static void child(UNUSED void *arg)
{
	int in, out;
	char cwd[64] = "";
	char c;

	MUST(mkdir(guest_path("jail"), 0755));
	MUST(mkdir(guest_path("jail/sub"), 0755));
	out = MUST(open(guest_path("outside"), O_RDWR | O_CREAT, 0600));
	SAME("written", write(out, "o", 1), 1);
	MUST(chroot(guest_path("jail")));
	MUST(chdir("/sub"));
	in = MUST(open("/sub/inside", O_RDWR | O_CREAT, 0600));
	SAME("written", write(in, "i", 1), 1);
	guest_child_ready_wait();
	/* Reports from in here have no way out but the exit code. */
	if (SPOIL("root"))
		_exit(chroot("/sub") ? 20 : access("/inside", F_OK) ? 21 : 22);
	if (SPOIL("cwd"))
		MUST(chdir("/"));
	if (!getcwd(cwd, sizeof(cwd)) || strcmp(cwd, "/sub"))
		_exit(11);
	if (access("/sub/inside", F_OK) || access("/proc/self", F_OK) == 0)
		_exit(12);
	if (pread(in, &c, 1, 0) != 1 || c != 'i' || pread(out, &c, 1, 0) != 1 || c != 'o')
		_exit(13);
}

int main(int argc, char **argv)
{
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	guest_ready_wait();
	guest_child_finish(kid);
	guest_pass();
}
