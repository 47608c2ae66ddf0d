/* Open files (file descriptions) that dup and fork share: one offset, one set of flags, several slots. */
#include "guest.h"

static int fd, copy, lone;

static void child(UNUSED void *arg)
{
	guest_child_ready_wait();
	if (SPOIL("fork")) {
		MUST(dup2(open(guest_path("file"), O_RDWR), fd));
		MUST(dup2(fd, copy));
	}
	SAME("written", write(fd, "c", 1), 1);
	MUST(fcntl(copy, F_SETFL, O_NONBLOCK));
}

int main(int argc, char **argv)
{
	pid_t kid;

	guest_init(argc, argv);
	fd = MUST(open(guest_path("file"), O_RDWR | O_CREAT, 0600));
	copy = MUST(fcntl(fd, F_DUPFD, 50));
	lone = MUST(open(guest_path("file"), O_RDWR));
	SAME("written", write(fd, "aaaa", 4), 4);
	kid = guest_child(child, NULL);
	guest_ready_wait();
	if (SPOIL("dup")) {
		MUST(dup2(open(guest_path("file"), O_RDWR), copy));
		lseek(copy, 4, SEEK_SET);
	}
	if (SPOIL("lone"))
		MUST(dup2(fd, lone));
	guest_child_finish(kid);
	SAME("number of the duplicate", copy, 50);
	SAME("offset after the child wrote", lseek(fd, 0, SEEK_CUR), 5);
	SAME("offset seen by the duplicate", lseek(copy, 0, SEEK_CUR), 5);
	SAME("offset of the other open file", lseek(lone, 0, SEEK_CUR), 0);
	SAME("flags set by the child", fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	SAME("flags of the other open file", fcntl(lone, F_GETFL) & O_NONBLOCK, 0);
	SAME("same open file", syscall(SYS_kcmp, getpid(), getpid(), 0, fd, copy), 0);
	CHECK(syscall(SYS_kcmp, getpid(), getpid(), 0, fd, lone) != 0, "two open files became one");
	guest_pass();
}
