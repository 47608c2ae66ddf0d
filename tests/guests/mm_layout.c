/* The layout of the address space: brk, stack growth, arguments, environment, auxiliary vector, exe link, comm. */
#include "guest.h"
#include <sys/auxv.h>

#ifndef PR_GET_AUXV
#define PR_GET_AUXV 0x41555856
#endif

static char *copy(const char *path, size_t *len)
{
	int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
	/* Not malloc: that would move brk. */
	char *buf = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	*len = MUST(read(fd, buf, 1 << 16));
	close(fd);
	return buf;
}

/* Fields 26-28 and 45-51 of /proc/self/stat: code, stack, data, brk, arguments and environment. */
static void bounds(unsigned long *into)
{
	char *at = strrchr(guest_slurp("/proc/self/stat"), ')') + 2, *save = NULL;
	int n = 3, k = 0;

	for (char *w = strtok_r(at, " ", &save); w; w = strtok_r(NULL, " ", &save), n++)
		if ((n >= 26 && n <= 28) || (n >= 45 && n <= 51))
			into[k++] = strtoul(w, NULL, 10);
	SAME("fields", k, 10);
}

static int deep(int n)
{
	volatile char frame[PAGE];

	frame[0] = n;
	return n ? deep(n - 1) + frame[0] : frame[0];
}

int main(int argc, char **argv)
{
	static const char *files[] = { "/proc/self/cmdline", "/proc/self/environ", "/proc/self/auxv" };
	char *was[3], *now, exe[2][PATH_MAX] = { "", "" };
	unsigned long lay[2][10];
	size_t len[3], l;
	void *brk;

	guest_init(argc, argv);
	for (int i = 0; i < 3; i++)
		was[i] = copy(files[i], &len[i]);
	MUST(readlink("/proc/self/exe", exe[0], PATH_MAX - 1));
	brk = sbrk(3 * PAGE);
	memset(brk, 7, 3 * PAGE);
	brk = sbrk(0);
	bounds(lay[0]);
	guest_ready_wait();
	if (SPOIL("cmdline"))
		argv[0][0] ^= 1;
	if (SPOIL("environ"))
		getenv("GUEST")[0] ^= 1;
	if (SPOIL("brk"))
		sbrk(PAGE);
	if (SPOIL("auxv"))
		len[2] -= 16;
	if (SPOIL("exe"))
		exe[0][3] ^= 1;
	if (SPOIL("bounds"))
		lay[0][9]++;
	for (int i = 0; i < 3; i++) {
		now = copy(files[i], &l);
		SAME(files[i], l, len[i]);
		CHECK(!memcmp(now, was[i], l), "%s changed", files[i]);
	}
	MUST(readlink("/proc/self/exe", exe[1], PATH_MAX - 1));
	CHECK(!strcmp(exe[0], exe[1]), "exe is %s", exe[1]);
	CHECK(sbrk(0) == brk, "brk is %p, not %p", sbrk(0), brk);
	bounds(lay[1]);
	for (int i = 0; i < 10; i++)
		CHECK(lay[0][i] == lay[1][i], "bound %d is 0x%lx, not 0x%lx", i, lay[1][i], lay[0][i]);
	SAME("byte below brk", ((char *)brk)[-1], 7);
	CHECK(sbrk(64 * PAGE) == brk && sbrk(0) == (char *)brk + 64 * PAGE, "the heap does not grow");
	((char *)brk)[63 * PAGE] = 1;
	/* 2 MiB of stack, much more than is mapped: it must still grow. */
	CHECK(deep(512) != -1, "impossible");
	CHECK(!strcmp(getenv("GUEST"), "stasis"), "environment variable changed");
	CHECK(getauxval(AT_SYSINFO_EHDR), "no vDSO");
	guest_pass();
}
