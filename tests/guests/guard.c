/* Guard pages (MADV_GUARD_INSTALL): a touch still faults, and the neighbours keep their contents. */
#include "guest.h"
#include <setjmp.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static sigjmp_buf back;

static void on_segv(UNUSED int sig)
{
	siglongjmp(back, 1);
}

static int faults(volatile char *at)
{
	if (sigsetjmp(back, 1))
		return 1;
	(void)*at;
	return 0;
}

int main(int argc, char **argv)
{
	char *mem;

	guest_init(argc, argv);
	signal(SIGSEGV, on_segv);
	mem = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	guest_fill(mem, 16 * PAGE, 14);
	if (madvise(mem + 4 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL))
		guest_skip("kernel without guard pages");
	MUST(madvise(mem + 15 * PAGE, PAGE, MADV_GUARD_INSTALL));
	guest_ready_wait();
	if (SPOIL("removed"))
		madvise(mem + 5 * PAGE, PAGE, MADV_GUARD_REMOVE);
	if (SPOIL("more"))
		madvise(mem + 9 * PAGE, PAGE, MADV_GUARD_INSTALL);
	if (SPOIL("content"))
		mem[7 * PAGE] ^= 1;
	for (int i = 0; i < 16; i++)
		SAME("fault", faults(mem + i * PAGE), (i >= 4 && i < 7) || i == 15);
	CHECK(guest_filled(mem, 4 * PAGE, 14), "contents below changed");
	for (size_t i = 7 * PAGE / 4; i < 15 * PAGE / 4; i++)
		CHECK(((uint32_t *)mem)[i] == ((uint32_t)(i * 2654435761u) ^ 14), "word %zu changed", i);
	MUST(madvise(mem + 4 * PAGE, PAGE, MADV_GUARD_REMOVE));
	SAME("fault after removal", faults(mem + 4 * PAGE), 0);
	guest_pass();
}
