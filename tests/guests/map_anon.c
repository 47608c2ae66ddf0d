/* Private anonymous memory: contents, holes never touched, protections, addresses, pages zeroed on purpose. */
#include "guest.h"

int main(int argc, char **argv)
{
	char *rw, *ro, *rx, *sparse, *none;
	unsigned char vec;

	guest_init(argc, argv);
	rw = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	guest_fill(rw, 64 * PAGE, 1);
	memset(rw + 5 * PAGE, 0, PAGE);
	ro = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	guest_fill(ro, 4 * PAGE, 2);
	MUST(mprotect(ro, 4 * PAGE, PROT_READ));
	rx = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* mov $77, %eax; ret */
	memcpy(rx, "\xb8\x4d\x00\x00\x00\xc3", 6);
	MUST(mprotect(rx, PAGE, PROT_READ | PROT_EXEC));
	sparse = mmap(NULL, 1UL << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (unsigned long at = 0; at < 1UL << 30; at += 1UL << 26)
		sparse[at] = at >> 26;
	none = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	guest_fill(none, 4 * PAGE, 3);
	MUST(mprotect(none, 4 * PAGE, PROT_NONE));
	guest_ready_wait();

	if (SPOIL("content"))
		rw[63 * PAGE] ^= 1;
	if (SPOIL("zeroed"))
		rw[5 * PAGE + 9] = 1;
	if (SPOIL("protection"))
		mprotect(ro, 4 * PAGE, PROT_READ | PROT_WRITE);
	if (SPOIL("exec"))
		mprotect(rx, PAGE, PROT_READ);
	if (SPOIL("hole"))
		sparse[PAGE] = 1;
	if (SPOIL("sparse"))
		sparse[1UL << 26] = 0;
	if (SPOIL("gone"))
		munmap(none, PAGE);
	CHECK(guest_filled(rw, 5 * PAGE, 1), "first pages changed");
	for (size_t i = 0; i < PAGE; i++)
		CHECK(!rw[5 * PAGE + i], "the zeroed page is not zero at %zu", i);
	memcpy(rw, rw + 6 * PAGE, PAGE);
	CHECK(guest_filled(ro, 4 * PAGE, 2), "read-only pages changed");
	CHECK(strstr(guest_map(ro), " r--p "), "protection of the read-only pages: %s", guest_map(ro));
	CHECK(strstr(guest_map(rx), " r-xp "), "protection of the code: %s", guest_map(rx));
	SAME("code", ((int (*)(void))rx)(), 77);
	for (unsigned long at = 0; at < 1UL << 30; at += 1UL << 26)
		SAME("sparse byte", sparse[at], at >> 26);
	MUST(mincore(sparse + PAGE, PAGE, &vec));
	SAME("residency of an untouched page", vec & 1, 0);
	CHECK(guest_vmflag(sparse, "nr"), "MAP_NORESERVE is lost: %s", guest_vmflags(sparse));
	CHECK(strstr(guest_map(none), " ---p "), "protection of the hidden pages: %s", guest_map(none));
	MUST(mprotect(none, 4 * PAGE, PROT_READ | PROT_WRITE));
	CHECK(guest_filled(none, 4 * PAGE, 3), "hidden pages changed");
	/* The tail of rw, which nothing above wrote. */
	for (size_t i = 6 * PAGE / 4; i < 64 * PAGE / 4; i++)
		CHECK(((uint32_t *)rw)[i] == ((uint32_t)(i * 2654435761u) ^ 1), "word %zu changed", i);
	guest_pass();
}
