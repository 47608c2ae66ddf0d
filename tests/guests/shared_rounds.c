/*
 * Shared memory that changes between two looks at it, in ways that no protection of pages sees: written by children that have ended
 * since, by write(2) on a memfd, by mappings that came and went, and given back. The guest remembers what each page must hold.
 */
#include "guest.h"
#include <sys/shm.h>

#define PAGES 256
/* Behind them in the anonymous memory: bytes that never change. */
#define STILL (2048 * PAGE)

static unsigned *anon, *file, *segment;
static unsigned of_anon[PAGES], of_file[PAGES], of_segment[PAGES], of_open[PAGES];

static void look(const char *what, const unsigned *at, const unsigned *must)
{
	for (size_t i = 0; i < PAGES; i++)
		CHECK(at[i * PAGE / 4] == must[i], "page %zu of %s holds %u, not %u", i, what, at[i * PAGE / 4], must[i]);
}

int main(int argc, char **argv)
{
	sigset_t set, waits;
	unsigned n;
	int fd, open, id, status;

	guest_init(argc, argv);
	anon = mmap(NULL, PAGES * PAGE + STILL, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	fd = MUST(memfd_create("rounds", MFD_CLOEXEC));
	MUST(ftruncate(fd, PAGES * PAGE));
	file = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	id = MUST(shmget(IPC_PRIVATE, PAGES * PAGE, 0600 | IPC_CREAT));
	segment = shmat(id, NULL, 0);
	CHECK(segment != (void *)-1, "shmat: %s", strerror(errno));
	MUST(shmctl(id, IPC_RMID, NULL));
	for (size_t i = 0; i < PAGES; i += 2) {
		anon[i * PAGE / 4] = of_anon[i] = i;
		segment[i * PAGE / 4] = of_segment[i] = i;
	}
	guest_fill((char *)anon + PAGES * PAGE, STILL, 8);
	/* One that nobody maps, as large. */
	open = MUST(memfd_create("open", MFD_CLOEXEC));
	SAME("written", pwrite(open, anon + PAGES * PAGE / 4, STILL, PAGES * PAGE), STILL);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	guest_ready();
	for (n = 1000;; n++) {
		size_t at = n * 37 % PAGES;
		pid_t kid = MUST(fork());

		if (!kid) {
			unsigned *again = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

			anon[at * PAGE / 4] = n;
			again[(at + 1) % PAGES * PAGE / 4] = n;
			segment[at * PAGE / 4] = n;
			_exit(0);
		}
		while (waitpid(kid, &status, 0) < 0)
			CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
		SAME("end of a child", status, 0);
		of_anon[at] = of_file[(at + 1) % PAGES] = of_segment[at] = n;
		SAME("written", pwrite(fd, &n, sizeof(n), at * PAGE), sizeof(n));
		of_file[at] = n;
		SAME("written", pwrite(open, &n, sizeof(n), at * PAGE), sizeof(n));
		of_open[at] = n;
		if (n % 7 == 0) {
			MUST(madvise((char *)anon + (at + 2) % PAGES * PAGE, PAGE, MADV_REMOVE));
			of_anon[(at + 2) % PAGES] = 0;
		}
		if (!sigpending(&waits) && sigismember(&waits, SIGTERM))
			break;
		usleep(500);
	}
	if (SPOIL("anon"))
		anon[3 * PAGE / 4]++;
	if (SPOIL("file"))
		of_file[3]++;
	if (SPOIL("open"))
		of_open[3]++;
	for (size_t i = 0; i < PAGES; i++) {
		SAME("read", pread(open, &n, sizeof(n), i * PAGE), sizeof(n));
		CHECK(n == of_open[i], "page %zu of the open memfd holds %u, not %u", i, n, of_open[i]);
	}
	for (size_t i = 0; i < STILL; i += PAGE) {
		SAME("read", pread(open, &n, sizeof(n), PAGES * PAGE + i), sizeof(n));
		CHECK(n == anon[(PAGES * PAGE + i) / 4], "byte %zu of the open memfd has changed", i);
	}
	if (SPOIL("segment"))
		segment[3 * PAGE / 4]++;
	if (SPOIL("still"))
		anon[(PAGES + 1000) * PAGE / 4]++;
	CHECK(guest_filled((char *)anon + PAGES * PAGE, STILL, 8), "what never changes has changed");
	look("the shared memory", anon, of_anon);
	look("the memfd", file, of_file);
	look("the segment", segment, of_segment);
	guest_pass();
}
