/* madvise flags of mappings: DONTFORK, DONTDUMP, WIPEONFORK, HUGEPAGE, NOHUGEPAGE, SEQUENTIAL, RANDOM. */
#include "guest.h"

static const struct {
	int advice;
	const char *flag;
} rows[] = {
	{ MADV_DONTFORK, "dc" },   { MADV_DONTDUMP, "dd" },	 { MADV_WIPEONFORK, "wf" }, { MADV_HUGEPAGE, "hg" },
	{ MADV_NOHUGEPAGE, "nh" }, { MADV_SEQUENTIAL, "sr" }, { MADV_RANDOM, "rr" },	
};
enum { N = sizeof(rows) / sizeof(*rows) };

int main(int argc, char **argv)
{
	char *at[N];
	pid_t kid;
	int status;

	guest_init(argc, argv);
	for (int i = 0; i < N; i++) {
		at[i] = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		guest_fill(at[i], 4 * PAGE, 20 + i);
		/* Only the two pages in the middle. Not every kernel is built with every flag. */
		if (madvise(at[i] + PAGE, 2 * PAGE, rows[i].advice))
			at[i] = NULL;
	}
	guest_ready_wait();
	if (SPOIL("hugepage"))
		madvise(at[3], 4 * PAGE, MADV_NOHUGEPAGE);
	if (SPOIL("dontfork"))
		madvise(at[0], 4 * PAGE, MADV_DOFORK);
	if (SPOIL("dontdump"))
		madvise(at[1] + 2 * PAGE, PAGE, MADV_DODUMP);
	if (SPOIL("wipeonfork"))
		madvise(at[2] + 2 * PAGE, PAGE, MADV_KEEPONFORK);
	if (SPOIL("random"))
		madvise(at[6] + PAGE, PAGE, MADV_NORMAL);
	if (SPOIL("content"))
		at[4][2 * PAGE] ^= 1;
	for (int i = 0; i < N; i++) {
		if (!at[i])
			continue;
		for (int p = 0; p < 4; p++)
			CHECK(guest_vmflag(at[i] + p * PAGE, rows[i].flag) == (p == 1 || p == 2), "flag %s of page %d: %s", rows[i].flag, p,
			      guest_vmflags(at[i] + p * PAGE));
		CHECK(guest_filled(at[i], 4 * PAGE, 20 + i), "contents of the pages with flag %s changed", rows[i].flag);
	}
	/* What the flags do: a child does not have the first, and finds the third wiped. */
	kid = MUST(fork());
	if (!kid) {
		CHECK(!*guest_map(at[0] + PAGE), "the child has the MADV_DONTFORK pages");
		CHECK(!at[2][PAGE + 8] && !at[2][PAGE + 9], "the MADV_WIPEONFORK pages are not wiped");
		_exit(0);
	}
	SAME("child", waitpid(kid, &status, 0), kid);
	SAME("status of the child", status, 0);
	guest_pass();
}
