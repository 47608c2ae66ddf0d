/* Memory-deny-write-execute: cannot be switched off, and still refuses what it must refuse. */
#include "guest.h"

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif

int main(int argc, char **argv)
{
	void *page;

	guest_init(argc, argv);
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!SPOIL("off") && prctl(PR_SET_MDWE, 1, 0, 0, 0))
		guest_skip("no PR_SET_MDWE");
	guest_ready_wait();
	CHECK(mprotect(page, PAGE, PROT_READ | PROT_EXEC) == -1 && errno == EACCES, "memory could be made executable");
	SAME("MDWE", prctl(PR_GET_MDWE, 0, 0, 0, 0), 1);
	guest_pass();
}
