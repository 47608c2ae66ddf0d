/* Mappings of newer kernels: sealed (mseal), droppable (MAP_DROPPABLE). */
#include "guest.h"

int main(int argc, char **argv)
{
	char *sealed, *drop;

	guest_init(argc, argv);
	sealed = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	guest_fill(sealed, 4 * PAGE, 3);
	MUST(mprotect(sealed, 4 * PAGE, PROT_READ));
	if (syscall(462, sealed, 4 * PAGE, 0))
		guest_skip("no mseal");
	drop = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, 0x08 | MAP_ANONYMOUS, -1, 0);
	if (drop == MAP_FAILED)
		guest_skip("no MAP_DROPPABLE");
	drop[0] = 'd';
	guest_ready_wait();
	if (SPOIL("unsealed")) {
		/* What is sealed stays: its place is taken by looking elsewhere. */
		sealed = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		guest_fill(sealed, 4 * PAGE, 3);
		mprotect(sealed, 4 * PAGE, PROT_READ);
	}
	if (SPOIL("kept"))
		mmap(drop, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(guest_filled(sealed, 4 * PAGE, 3), "sealed contents changed");
	CHECK(munmap(sealed, PAGE) == -1 && errno == EPERM, "the sealed mapping could be removed");
	CHECK(guest_vmflag(sealed, "sl"), "flags of the sealed mapping: %s", guest_vmflags(sealed));
	CHECK(guest_vmflag(drop, "dp"), "flags of the droppable mapping: %s", guest_vmflags(drop));
	/* The kernel may drop the page at any time, and then it reads as zero. */
	CHECK(drop[0] == 'd' || drop[0] == 0, "droppable contents changed");
	guest_pass();
}
