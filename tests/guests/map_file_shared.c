/* Shared file mappings: writes reach the file, two views agree, read-only views of files that may not be written. */
#include "guest.h"

int main(int argc, char **argv)
{
	char *a, *b, *ro, c;
	int fd, rfd;

	guest_init(argc, argv);
	fd = MUST(open(guest_path("file"), O_RDWR | O_CREAT, 0644));
	MUST(ftruncate(fd, 8 * PAGE));
	rfd = MUST(open(guest_path("file"), O_RDONLY));
	a = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	b = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 3 * PAGE);
	ro = mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, rfd, 0);
	guest_fill(a, 8 * PAGE, 6);
	close(rfd);
	guest_ready_wait();
	if (SPOIL("content"))
		a[7 * PAGE] ^= 1;
	if (SPOIL("private"))
		mmap(b, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 3 * PAGE);
	if (SPOIL("write-right"))
		mmap(ro, 8 * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
	CHECK(guest_filled(a, 8 * PAGE, 6), "contents changed");
	CHECK(!memcmp(a + 3 * PAGE, b, 2 * PAGE), "the views differ");
	CHECK(!memcmp(a, ro, 8 * PAGE), "the read-only view differs");
	b[PAGE] = 'x';
	SAME("byte in the other view", a[4 * PAGE], 'x');
	SAME("read", pread(fd, &c, 1, 4 * PAGE), 1);
	SAME("byte in the file", c, 'x');
	/* The file was opened for reading only: the mapping may never become writable. */
	CHECK(mprotect(ro, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "the read-only view can be made writable");
	guest_pass();
}
