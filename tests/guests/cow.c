/*
 * Copy-on-write sharing between parent and child: pages that neither wrote since the fork are the same physical pages.
 * Physical page numbers need CAP_SYS_ADMIN; without them only the contents are checked.
 */
#include "guest.h"

enum { N = 64 };
static char *mem;

/* Physical page number of addr in a task; 0 when it cannot be seen. */
static uint64_t frame(pid_t pid, const void *addr)
{
	char path[64];
	uint64_t entry = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, &entry, 8, (unsigned long)addr / PAGE * 8) != 8)
		entry = 0;
	close(fd);
	return entry & ((1ull << 55) - 1);
}

static void child(UNUSED void *arg)
{
	/* The child wrote to page 1, the parent to page 2. */
	mem[PAGE] = 'c';
	guest_child_ready_wait();
	if (SPOIL("child"))
		mem[PAGE] = 0;
	SAME("child's page", mem[PAGE], 'c');
	CHECK(mem[2 * PAGE] != 'p', "the parent's write is seen by the child");
	mem[PAGE] = ((uint32_t)((PAGE / 4) * 2654435761u) ^ 15) & 0xff;
	CHECK(guest_filled(mem, N * PAGE, 15), "the child's contents changed");
}

int main(int argc, char **argv)
{
	pid_t kid;
	int see;

	guest_init(argc, argv);
	mem = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(mem, N * PAGE, MADV_NOHUGEPAGE);
	guest_fill(mem, N * PAGE, 15);
	kid = guest_child(child, NULL);
	mem[2 * PAGE] = 'p';
	see = frame(getpid(), mem) != 0;
	guest_ready_wait();
	if (SPOIL("parent"))
		mem[5 * PAGE] = 0;
	if (SPOIL("shared"))
		for (int i = 0; i < N; i++)
			*(volatile char *)(mem + i * PAGE + 9) += 0;
	SAME("parent's page", mem[2 * PAGE], 'p');
	for (int i = 0; i < N && (see); i++) {
		int same;

		/* A read brings in a page that was swapped or left out. */
		(void)*(volatile char *)(mem + i * PAGE);
		same = frame(getpid(), mem + i * PAGE) == frame(kid, mem + i * PAGE) && see;
		CHECK(same == (i != 1 && i != 2), "page %d is %sthe same physical page in parent and child", i, same ? "" : "not ");
	}
	guest_child_finish(kid);
	mem[2 * PAGE] = ((uint32_t)((2 * PAGE / 4) * 2654435761u) ^ 15) & 0xff;
	CHECK(guest_filled(mem, N * PAGE, 15), "the parent's contents changed");
	guest_pass();
}
