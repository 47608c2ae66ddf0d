/*
 * Memory that changes all the time, in every way that change tracking could miss: pages are written, given back, mapped anew,
 * moved by mremap, protected and unprotected; a child is forked again and again; another executes itself again and again.
 * What every page must hold is written down in shared memory, which every dump holds whole.
 */
#include "guest.h"

#define BLOCKS 24
#define IN_BLOCK 16
#define PAGES (BLOCKS * IN_BLOCK)
#define BLOCK (IN_BLOCK * PAGE)
#define QUIET 1024

struct book {
	uint64_t seed;
	int stop;
	pid_t child;
	char *spare;
	char *block[BLOCKS];
	uint32_t value[PAGES];
};

static struct book *book;
static char *quiet;

static uint64_t next(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static void fill(char *page, uint32_t v)
{
	for (unsigned i = 0; i < PAGE / 4; i++)
		((volatile uint32_t *)page)[i] = v;
}

static int holds(const char *page, uint32_t v)
{
	for (unsigned i = 0; i < PAGE / 4; i++)
		if (((const uint32_t *)page)[i] != v)
			return 0;
	return 1;
}

static char *page_of(struct book *b, unsigned n)
{
	return b->block[n / IN_BLOCK] + n % IN_BLOCK * PAGE;
}

static int wrong(struct book *b)
{
	for (unsigned n = 0; n < PAGES; n++)
		if (!holds(page_of(b, n), b->value[n]))
			return (int)n;
	return -1;
}

static int told_to_end(long ns)
{
	struct timespec t = { 0, ns };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	return sigtimedwait(&set, NULL, &t) == SIGTERM;
}

/* The child has the memory of its parent, copy-on-write, and its own book of it. */
static void child(struct book *own)
{
	while (!told_to_end(2000000)) {
		unsigned n = next(&own->seed) % PAGES;

		own->value[n] = next(&own->seed);
		fill(page_of(own, n), own->value[n]);
	}
	_exit(wrong(own) >= 0);
}

/* Executes itself until it is told to verify. */
static int again(char **argv)
{
	unsigned n = atoi(argv[4]);
	char text[16];
	char *m = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (unsigned i = 0; i < 64; i++)
		fill(m + i * PAGE, n * 64 + i + 1);
	int end = told_to_end(5000000);
	for (unsigned i = 0; i < 64; i++)
		if (!holds(m + i * PAGE, n * 64 + i + 1))
			return 1;
	if (end)
		return 0;
	snprintf(text, sizeof(text), "%u", n + 1);
	argv[4] = text;
	execv("/proc/self/exe", argv);
	return 2;
}

static void new_child(int last)
{
	int status;

	if (book->child) {
		kill(book->child, last ? SIGTERM : SIGKILL);
		CHECK(waitpid(book->child, &status, 0) == book->child, "the child is gone");
		CHECK(!last || status == 0, "the child's memory is wrong: status 0x%x", status);
		book->child = 0;
	}
	if (!last) {
		struct book *own = malloc(sizeof(*own));

		memcpy(own, book, sizeof(*own));
		pid_t pid = fork();

		if (pid == 0)
			child(own);
		free(own);
		book->child = (pid_t)MUST(pid);
	}
}

static void one(void)
{
	unsigned n = next(&book->seed) % PAGES, b = n / IN_BLOCK;
	char *p = page_of(book, n), *was = book->block[b];

	switch (next(&book->seed) % 64) {
	case 0 ... 3:
		MUST(madvise(p, PAGE, MADV_DONTNEED));
		book->value[n] = 0;
		break;
	case 4:
		MUST(munmap(was, BLOCK));
		MUST(mmap(was, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		memset(&book->value[b * IN_BLOCK], 0, IN_BLOCK * sizeof(uint32_t));
		break;
	case 5 ... 7:
		/* two blocks change places by way of the spare one */
		MUST(mremap(was, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, book->spare));
		MUST(mmap(was, BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		book->block[b] = book->spare;
		book->spare = was;
		break;
	case 8 ... 9:
		MUST(mprotect(was, BLOCK, PROT_READ));
		CHECK(holds(p, book->value[n]), "page %u changed while it was read-only", n);
		MUST(mprotect(was, BLOCK, PROT_READ | PROT_WRITE));
		break;
	case 10:
		new_child(0);
		break;
	default:
		book->value[n] = next(&book->seed);
		fill(p, book->value[n]);
	}
}

static void *churn(UNUSED void *arg)
{
	while (!__atomic_load_n(&book->stop, __ATOMIC_ACQUIRE)) {
		one();
		usleep(100);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc > 4 && !strcmp(argv[3], "again"))
		return again(argv);
	guest_init(argc, argv);
	book = mmap(NULL, sizeof(*book), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *all = mmap(NULL, (2 * BLOCKS + 3) * BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	quiet = mmap(NULL, QUIET * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	guest_fill(quiet, QUIET * PAGE, 7);
	book->seed = guest_arg(0, 88172645463325252L);
	for (unsigned b = 0; b < BLOCKS; b++) {
		/* with a gap after each: they stay mappings of their own */
		book->block[b] = all + 2 * b * BLOCK;
		MUST(mprotect(book->block[b], BLOCK, PROT_READ | PROT_WRITE));
		for (unsigned i = 0; i < IN_BLOCK; i++) {
			unsigned n = b * IN_BLOCK + i;

			book->value[n] = n + 1;
			fill(page_of(book, n), n + 1);
		}
	}
	book->spare = all + 2 * BLOCKS * BLOCK;
	new_child(0);
	char *words[] = { argv[0], argv[1], "-", "again", "0", NULL };
	pid_t runner = fork();

	if (runner == 0) {
		execv("/proc/self/exe", words);
		_exit(2);
	}
	pthread_t thread;
	MUST(-pthread_create(&thread, NULL, churn, NULL));
	guest_ready_wait();
	__atomic_store_n(&book->stop, 1, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	int status;

	if (SPOIL("page"))
		*page_of(book, 100) += 1;
	if (SPOIL("quiet"))
		quiet[QUIET * PAGE - 1] += 1;
	if (SPOIL("runner"))
		kill(runner, SIGKILL);
	if (SPOIL("child"))
		kill(book->child, SIGKILL);
	int bad = wrong(book);

	CHECK(bad < 0, "page %d does not hold what was written last", bad);
	CHECK(guest_filled(quiet, QUIET * PAGE, 7), "memory nobody wrote to has changed");
	new_child(1);
	kill(runner, SIGTERM);
	CHECK(waitpid(runner, &status, 0) == runner && status == 0, "the program executed again and again: status 0x%x", status);
	guest_pass();
}
