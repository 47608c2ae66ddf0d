/* Shared anonymous memory of one task: contents, protection, two views of one object, a hole never touched. */
#include "guest.h"

int main(int argc, char **argv)
{
	char *a, *b, *part;

	guest_init(argc, argv);
	a = mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	guest_fill(a, 16 * PAGE, 3);
	/* A second view: mremap with old size 0 maps the same object again. */
	b = mremap(a, 0, 32 * PAGE, MREMAP_MAYMOVE);
	CHECK(b != MAP_FAILED, "second view: %s", strerror(errno));
	part = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	guest_fill(part, 8 * PAGE, 4);
	/* Only pages 4-7 stay mapped: what is left starts at an offset. */
	MUST(munmap(part, 4 * PAGE));
	MUST(mprotect(part + 4 * PAGE, PAGE, PROT_READ));
	guest_ready_wait();
	if (SPOIL("content"))
		a[PAGE] ^= 1;
	if (SPOIL("views"))
		mmap(b, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (SPOIL("protection"))
		mprotect(part + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE);
	if (SPOIL("private"))
		mmap(part + 5 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(guest_filled(a, 16 * PAGE, 3), "contents changed");
	for (size_t i = 16 * PAGE; i < 32 * PAGE; i++)
		CHECK(!a[i], "byte %zu is not zero", i);
	a[20 * PAGE] = 77;
	SAME("byte in the other view", b[20 * PAGE], 77);
	CHECK(strstr(guest_map(part + 4 * PAGE), " r--s "), "protection of the shared page: %s", guest_map(part + 4 * PAGE));
	CHECK(strstr(guest_map(part + 5 * PAGE), " rw-s "), "protection of the next page: %s", guest_map(part + 5 * PAGE));
	for (size_t i = 4 * PAGE / 4; i < 8 * PAGE / 4; i++)
		CHECK(((uint32_t *)part)[i] == ((uint32_t)(i * 2654435761u) ^ 4), "word %zu changed", i);
	guest_pass();
}
