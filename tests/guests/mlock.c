/* Locked memory: mlock, mlock2(ONFAULT), and pages next to them that are not. */
#include "guest.h"

int main(int argc, char **argv)
{
	char *mem, *lazy;
	unsigned long locked;
	unsigned char vec;

	guest_init(argc, argv);
	mem = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mem[2 * PAGE] = 'm';
	MUST(mlock(mem + 2 * PAGE, 3 * PAGE));
	lazy = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (syscall(SYS_mlock2, lazy, 4 * PAGE, 1))
		guest_skip("no mlock2");
	lazy[0] = 'l';
	locked = guest_field(guest_slurp("/proc/self/status"), "VmLck:", 10);
	guest_ready_wait();
	if (SPOIL("unlocked"))
		munlock(mem + 3 * PAGE, PAGE);
	if (SPOIL("locked"))
		mlock(mem, PAGE);
	if (SPOIL("onfault"))
		munlock(lazy, 4 * PAGE), mlock(lazy, 4 * PAGE);
	SAME("VmLck", guest_field(guest_slurp("/proc/self/status"), "VmLck:", 10), locked);
	for (int i = 0; i < 8; i++)
		SAME("locked", guest_vmflag(mem + i * PAGE, "lo"), i >= 2 && i < 5);
	CHECK(guest_vmflag(lazy, "lo"), "lock on fault is lost: %s", guest_vmflags(lazy));
	MUST(mincore(lazy + PAGE, PAGE, &vec));
	SAME("residency of the page locked on fault", vec & 1, 0);
	SAME("contents", mem[2 * PAGE], 'm');
	SAME("contents", lazy[0], 'l');
	guest_pass();
}
