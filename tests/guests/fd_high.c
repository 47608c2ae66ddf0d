/* High descriptor numbers, up to the limit. */
#include "guest.h"
#include <sys/resource.h>

int main(int argc, char **argv)
{
	struct rlimit lim;
	int p[2], top, link;
	char buf[8] = "";

	guest_init(argc, argv);
	MUST(getrlimit(RLIMIT_NOFILE, &lim));
	if (lim.rlim_max > 1 << 20)
		lim.rlim_max = 1 << 20;
	lim.rlim_cur = lim.rlim_max;
	MUST(setrlimit(RLIMIT_NOFILE, &lim));
	top = lim.rlim_cur - 1;
	MUST(pipe(p));
	MUST(dup2(p[1], top));
	link = MUST(dup3(p[0], top - 1, O_CLOEXEC));
	close(p[0]);
	close(p[1]);
	SAME("written", write(top, "high", 4), 4);
	guest_ready_wait();
	if (SPOIL("lost"))
		close(top - 1);
	if (SPOIL("content"))
		MUST(read(link, buf, 1));
	if (SPOIL("cloexec"))
		fcntl(link, F_SETFD, 0);
	SAME("close-on-exec", fcntl(link, F_GETFD), FD_CLOEXEC);
	SAME("read", read(link, buf, 8), 4);
	CHECK(!strcmp(buf, "high"), "read %s", buf);
	SAME("written", write(top, "x", 1), 1);
	close(top);
	SAME("read", read(link, buf, 8), 1);
	SAME("end", read(link, buf, 8), 0);
	guest_pass();
}
