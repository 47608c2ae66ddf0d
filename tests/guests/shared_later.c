/*
 * Shared memory to which nothing leads but mappings: anonymous, and a memfd that nobody has open. Parent and child show it, and
 * cut, grow, move, double and inherit their mappings, maybe while it is still being filled after a restore.
 */
#include "guest.h"

#define LEN (1024 * PAGE)
#define HALF (LEN / 2)

static char *closed, *cut, *moved, *doubled, *tail;

/* The words of guest_fill() from an offset on. */
static void filled_from(const char *what, const char *at, size_t from, size_t to, uint32_t seed)
{
	const uint32_t *word = (const uint32_t *)at;

	for (size_t i = from / 4; i < to / 4; i++)
		CHECK(word[i - from / 4] == ((uint32_t)(i * 2654435761u) ^ seed), "word %zu of %s changed", i, what);
}

static char *shared(uint32_t seed)
{
	char *at = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
	guest_fill(at, LEN, seed);
	return at;
}

static void child(UNUSED void *arg)
{
	char *at;

	/* A mapping that begins in the middle of the object. */
	MUST(munmap(tail, HALF));
	guest_child_ready_wait();
	/* Moved away, and looked at before anybody else does. */
	at = mremap(moved, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, moved + (1ul << 30));
	CHECK(at == moved + (1ul << 30), "mremap: %s", strerror(errno));
	filled_from("the moved memory", at, 0, LEN, 3);
	filled_from("the memory's tail", tail + HALF, HALF, LEN, 5);
	at[0] = 'c';
	closed[7 * PAGE] = 'c';
}

int main(int argc, char **argv)
{
	char *again, *beside;
	int fd, status;
	pid_t kid, late;

	guest_init(argc, argv);
	fd = MUST(memfd_create("closed", MFD_CLOEXEC));
	MUST(ftruncate(fd, LEN));
	closed = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	/* A second view of it, with another protection. */
	beside = mmap(NULL, LEN, PROT_READ, MAP_SHARED, fd, 0);
	guest_fill(closed, LEN, 1);
	close(fd);
	cut = shared(2);
	moved = shared(3);
	doubled = shared(4);
	tail = shared(5);
	kid = guest_child(child, NULL);
	guest_ready_wait();
	/* Given up and shown again: the object still has it. */
	MUST(munmap(cut + HALF, HALF));
	CHECK(mremap(cut, HALF, LEN, 0) == cut, "it does not grow: %s", strerror(errno));
	if (SPOIL("grown"))
		cut[LEN - PAGE] ^= 1;
	filled_from("the memory that has grown", cut, 0, LEN, 2);
	again = mremap(doubled, 0, LEN, MREMAP_MAYMOVE);
	CHECK(again != MAP_FAILED, "mremap: %s", strerror(errno));
	if (SPOIL("doubled"))
		again[HALF] ^= 1;
	filled_from("the second view", again, 0, LEN, 4);
	filled_from("the first view", doubled, 0, LEN, 4);
	/* Only a part moves. */
	MUST(mremap(tail + HALF / 2, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, again));
	filled_from("the moved page", again, HALF / 2, HALF / 2 + PAGE, 5);
	/* Shared memory that is given back is as it was. */
	MUST(madvise(closed, LEN, MADV_DONTNEED));
	late = MUST(fork());
	if (!late) {
		if (SPOIL("inherited"))
			closed[9 * PAGE] ^= 1;
		filled_from("the inherited memory", closed + 8 * PAGE, 8 * PAGE, LEN, 1);
		closed[8 * PAGE] = 'l';
		_exit(0);
	}
	MUST(waitpid(late, &status, 0));
	SAME("end of the late child", status, 0);
	if (SPOIL("closed"))
		closed[HALF] ^= 1;
	filled_from("the memfd", closed + 9 * PAGE, 9 * PAGE, LEN, 1);
	filled_from("the memfd's second view", beside + 9 * PAGE, 9 * PAGE, LEN, 1);
	guest_child_finish(kid);
	if (SPOIL("together"))
		closed[7 * PAGE] = 0;
	SAME("byte from the child", closed[7 * PAGE], 'c');
	SAME("byte from the late child", beside[8 * PAGE], 'l');
	SAME("byte in memory that the child has moved", moved[0], 'c');
	guest_pass();
}
