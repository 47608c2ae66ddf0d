/* Directories as open files: position in the listing, use with openat, flags. */
#include "guest.h"

int main(int argc, char **argv)
{
	char seen[64] = "", first[8192], again[8192];
	int fd, half, n, m;

	guest_init(argc, argv);
	MUST(mkdir(guest_path("d"), 0755));
	for (int i = 0; i < 40; i++) {
		char name[32];

		snprintf(name, sizeof(name), "d/file-with-a-name-%02d", i);
		close(MUST(open(guest_path(name), O_WRONLY | O_CREAT, 0600)));
	}
	fd = MUST(open(guest_path("d"), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	half = MUST(open(guest_path("d"), O_RDONLY | O_DIRECTORY));
	/* About ten entries; what follows must be the same after the freeze. */
	MUST(syscall(SYS_getdents64, half, first, 400));
	n = MUST(syscall(SYS_getdents64, half, first, sizeof(first)));
	MUST(lseek(half, 0, SEEK_SET));
	MUST(syscall(SYS_getdents64, half, again, 400));
	guest_ready_wait();
	if (SPOIL("position"))
		lseek(half, 0, SEEK_SET);
	if (SPOIL("other"))
		dup2(open("/proc", O_RDONLY), fd);
	m = MUST(syscall(SYS_getdents64, half, again, sizeof(again)));
	SAME("length of the rest of the listing", m, n);
	CHECK(!memcmp(first, again, n), "the rest of the listing changed");
	CHECK(faccessat(fd, "file-with-a-name-07", F_OK, 0) == 0, "it is another directory");
	SAME("flags", fcntl(fd, F_GETFL) & (O_ACCMODE | O_DIRECTORY), O_RDONLY | O_DIRECTORY);
	SAME("close-on-exec", fcntl(fd, F_GETFD), FD_CLOEXEC);
	MUST(fchdir(fd));
	MUST((long)getcwd(seen, 1) == 0 && errno == ERANGE ? 0 : -1);
	guest_pass();
}
