/* Shared memory between parent and child: anonymous, in different places, with different protections, and /dev/zero's. */
#include "guest.h"

static char *both, *zero, *moved;

static void child(UNUSED void *arg)
{
	char *at = mremap(moved, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved + (64ul << 20));

	CHECK(at == moved + (64ul << 20), "mremap: %s", strerror(errno));
	MUST(mprotect(zero, PAGE, PROT_READ));
	guest_child_ready_wait();
	if (SPOIL("anon"))
		mmap(both, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (SPOIL("zero"))
		mmap(zero, 4 * PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (SPOIL("moved"))
		mmap(at, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	SAME("byte from the parent", both[PAGE], 'p');
	both[2 * PAGE] = 'c';
	at[PAGE] = 'm';
	SAME("byte from the parent in /dev/zero memory", zero[0], 'z');
	CHECK(strstr(guest_map(zero), " r--s "), "protection in the child: %s", guest_map(zero));
}

int main(int argc, char **argv)
{
	pid_t kid;
	int fd;

	guest_init(argc, argv);
	both = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	moved = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	fd = MUST(open("/dev/zero", O_RDWR));
	zero = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	guest_fill(both + 8 * PAGE, 8 * PAGE, 9);
	kid = guest_child(child, NULL);
	guest_ready_wait();
	both[PAGE] = 'p';
	zero[0] = 'z';
	guest_child_finish(kid);
	SAME("byte from the child", both[2 * PAGE], 'c');
	SAME("byte from the child in moved memory", moved[PAGE], 'm');
	if (SPOIL("content"))
		both[9 * PAGE] ^= 1;
	CHECK(guest_filled(both + 8 * PAGE, 8 * PAGE, 9), "contents changed");
	CHECK(strstr(guest_map(zero), " rw-s "), "protection in the parent: %s", guest_map(zero));
	guest_pass();
}
