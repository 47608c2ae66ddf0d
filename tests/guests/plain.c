/* One task with its globals, heap and stack, and nothing else: the smallest journey. */
#include "guest.h"

static int global = 41;
static char zeroed[3 * 4096];

int main(int argc, char **argv)
{
	volatile int local = 43;
	pid_t pid, ppid;
	char *heap;

	guest_init(argc, argv);
	pid = getpid();
	ppid = getppid();
	heap = malloc(100000);
	guest_fill(heap, 100000, 7);
	guest_fill(zeroed, sizeof(zeroed), 8);
	global++;
	guest_ready_wait();
	if (SPOIL("global"))
		global--;
	if (SPOIL("heap"))
		heap[99999] ^= 1;
	if (SPOIL("bss"))
		zeroed[5000] ^= 1;
	if (SPOIL("stack"))
		local = 0;
	if (SPOIL("pid"))
		pid++;
	SAME("pid", getpid(), pid);
	/* The parent is the engine's affair: a restored root hangs below whoever restored it. */
	CHECK(getppid() > 0 && ppid > 0, "no parent");
	SAME("session", getsid(0), pid);
	SAME("global", global, 42);
	SAME("local", local, 43);
	CHECK(guest_filled(heap, 100000, 7), "heap changed");
	CHECK(guest_filled(zeroed, sizeof(zeroed), 8), "bss changed");
	guest_pass();
}
