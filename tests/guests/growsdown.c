/* Mappings that grow downwards: the flag, the contents, and that they still grow. */
#include "guest.h"

int main(int argc, char **argv)
{
	char *room, *low;

	guest_init(argc, argv);
	/* A large hole with the growing page at its top. */
	room = mmap(NULL, 2048 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(munmap(room, 2048 * PAGE));
	low = mmap(room + 2040 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, -1, 0);
	CHECK(low == room + 2040 * PAGE, "mmap: %s", strerror(errno));
	guest_fill(low, 4 * PAGE, 13);
	/* Grown by two pages before the freeze. */
	low[-PAGE] = 'a';
	low[-2 * PAGE] = 'b';
	guest_ready_wait();
	if (SPOIL("content"))
		low[-2 * PAGE] = 0;
	if (SPOIL("flag"))
		mmap(low, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), guest_fill(low, 4 * PAGE, 13);
	CHECK(guest_vmflag(low, "gd"), "MAP_GROWSDOWN is lost: %s", guest_vmflags(low));
	CHECK(guest_filled(low, 4 * PAGE, 13), "contents changed");
	SAME("grown page", low[-PAGE], 'a');
	SAME("grown page", low[-2 * PAGE], 'b');
	low[-3 * PAGE] = 'c';
	SAME("newly grown page", low[-3 * PAGE], 'c');
	guest_pass();
}
