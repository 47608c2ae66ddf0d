/*
 * Memory of one instant: threads write all the time, each page in a fixed order, and know from their own registers and
 * stacks what every page must hold. A page that was saved a moment too early or too late is seen at the next turn. Pages are
 * also given back by madvise, and moved by mremap.
 */
#include "guest.h"

#define PAGES 6144UL
#define BLOCK (64 * PAGE)
#define BLOCKS 32

static int stop;
static char *area, *given, *moving;

static int over(void)
{
	return __atomic_load_n(&stop, __ATOMIC_ACQUIRE);
}

static volatile uint64_t *word(size_t k)
{
	size_t i = k * 2654435761UL % PAGES;

	/* first and last word of the page: a page saved in halves is seen */
	return (volatile uint64_t *)(area + i * PAGE);
}

static void *writer(UNUSED void *arg)
{
	for (uint64_t turn = 1;; turn++) {
		for (size_t k = 0; k < PAGES; k++) {
			volatile uint64_t *w = word(k);

			CHECK(w[0] == turn - 1 && w[511] == turn - 1, "page %zu of turn %lu holds %lu and %lu", k,
			      (unsigned long)turn, (unsigned long)w[0], (unsigned long)w[511]);
			w[0] = turn;
			w[511] = turn;
			if (over()) {
				/* what is behind has this turn, what is ahead the one before */
				if (SPOIL("page"))
					word(k + 1)[511] += 1;
				for (size_t j = 0; j < PAGES; j++) {
					uint64_t is = word(j)[0], last = word(j)[511], must = j <= k ? turn : turn - 1;

					CHECK(is == must && last == must, "page %zu holds %lu and %lu, not %lu", j,
					      (unsigned long)is, (unsigned long)last, (unsigned long)must);
				}
				return NULL;
			}
			if (k % 64 == 0)
				usleep(50);
		}
	}
}

static int block_is(const char *p, uint64_t v)
{
	for (size_t i = 0; i < BLOCK / PAGE; i++)
		if (((const volatile uint64_t *)(p + i * PAGE))[7] != v)
			return 0;
	return 1;
}

static void block_set(char *p, uint64_t v)
{
	for (size_t i = 0; i < BLOCK / PAGE; i++)
		((volatile uint64_t *)(p + i * PAGE))[7] = v;
}

static void *giver(UNUSED void *arg)
{
	uint64_t value[BLOCKS] = { 0 };

	for (uint64_t n = 1; !over(); n++) {
		size_t b = n * 7 % BLOCKS;
		char *p = given + b * BLOCK;

		CHECK(block_is(p, value[b]), "block %zu does not hold %lu", b, (unsigned long)value[b]);
		MUST(madvise(p, BLOCK, MADV_DONTNEED));
		value[b] = 0;
		CHECK(block_is(p, 0), "block %zu was given back and is not empty", b);
		block_set(p, n);
		value[b] = n;
		usleep(1000);
	}
	if (SPOIL("given"))
		given[3 * BLOCK + 7 * 8] += 1;
	for (size_t b = 0; b < BLOCKS; b++)
		CHECK(block_is(given + b * BLOCK, value[b]), "block %zu does not hold %lu in the end", b, (unsigned long)value[b]);
	return NULL;
}

static void *mover(UNUSED void *arg)
{
	const size_t len = 16 * BLOCK;
	char *at = moving, *other = moving + 2 * len;
	uint64_t v = 1;

	for (size_t b = 0; b < 16; b++)
		block_set(at + b * BLOCK, v);
	while (!over()) {
		char *was = at;

		MUST(mremap(at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, other));
		at = other;
		other = was;
		for (size_t b = 0; b < 16; b++) {
			CHECK(block_is(at + b * BLOCK, v), "moved block %zu does not hold %lu", b, (unsigned long)v);
			block_set(at + b * BLOCK, v + 1);
		}
		v++;
		usleep(20000);
	}
	if (SPOIL("moved"))
		at[5 * BLOCK + 7 * 8] += 1;
	for (size_t b = 0; b < 16; b++)
		CHECK(block_is(at + b * BLOCK, v), "moved block %zu does not hold %lu in the end", b, (unsigned long)v);
	return NULL;
}

static char *map(size_t len, int prot)
{
	return (char *)MUST(mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

int main(int argc, char **argv)
{
	void *(*const all[])(void *) = { writer, giver, mover };
	pthread_t thread[3];

	guest_init(argc, argv);
	area = map(PAGES * PAGE, PROT_READ | PROT_WRITE);
	for (size_t k = 0; k < PAGES; k++)
		word(k)[1] = k;
	map(PAGE, PROT_NONE);
	given = map(BLOCKS * BLOCK, PROT_READ | PROT_WRITE);
	map(PAGE, PROT_NONE);
	moving = map(64 * BLOCK, PROT_NONE);
	MUST(mprotect(moving, 16 * BLOCK, PROT_READ | PROT_WRITE));
	for (int i = 0; i < 3; i++)
		MUST(-pthread_create(&thread[i], NULL, all[i], NULL));
	guest_ready_wait();
	__atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < 3; i++)
		pthread_join(thread[i], NULL);
	guest_pass();
}
