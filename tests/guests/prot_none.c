/* Mappings with PROT_NONE, reserved and never touched, and the unmapped holes between neighbours: the map is the same. */
#include "guest.h"

/* The list of mappings without the heap and stack, which may grow by themselves. */
static char *list(void)
{
	char *text = strdup(guest_slurp("/proc/self/maps")), *out = calloc(1, strlen(text) + 1), *save = NULL;

	for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save))
		if (!strstr(l, "[heap]") && !strstr(l, "[stack]")) {
			/* Only addresses and rights: device numbers may change with the machine. */
			strncat(out, l, strcspn(l, " ") + 5);
			strcat(out, "\n");
		}
	free(text);
	return out;
}

int main(int argc, char **argv)
{
	char *mem, *was, *now;

	guest_init(argc, argv);
	/* So that malloc needs no new mappings of its own later. */
	free(malloc(120000));
	mem = mmap(NULL, 1000 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	mmap(NULL, 1ul << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (int i = 0; i < 200; i++) {
		MUST(munmap(mem + (5 * i + 1) * PAGE, PAGE));
		MUST(mprotect(mem + (5 * i + 3) * PAGE, PAGE, i & 1 ? PROT_READ : PROT_READ | PROT_WRITE));
		if (!(i & 1))
			mem[(5 * i + 3) * PAGE] = i;
	}
	free(list());
	was = list();
	guest_ready_wait();
	if (SPOIL("hole"))
		mmap(mem + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (SPOIL("protection"))
		mprotect(mem + 7 * PAGE, PAGE, PROT_READ);
	if (SPOIL("content"))
		mem[13 * PAGE] = 1;
	now = list();
	for (char *a = was, *b = now; *a || *b;) {
		size_t la = strcspn(a, "\n"), lb = strcspn(b, "\n");

		CHECK(la == lb && !memcmp(a, b, la), "mapping \"%.*s\", not \"%.*s\"", (int)lb, b, (int)la, a);
		a += la + !!a[la];
		b += lb + !!b[lb];
	}
	for (int i = 0; i < 200; i++)
		SAME("byte", mem[(5 * i + 3) * PAGE], i & 1 ? 0 : (char)i);
	guest_pass();
}
