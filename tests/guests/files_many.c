/* Many open files: regular ones with offsets, pipes with contents, duplicates. argv[3] is how many of each (1000). */
#include "guest.h"
#include <sys/resource.h>

int main(int argc, char **argv)
{
	struct rlimit lim;
	int *file, (*p)[2], n;
	char name[32], c;

	guest_init(argc, argv);
	n = guest_arg(0, 1000);
	MUST(getrlimit(RLIMIT_NOFILE, &lim));
	lim.rlim_cur = lim.rlim_max;
	MUST(setrlimit(RLIMIT_NOFILE, &lim));
	if (lim.rlim_cur < (rlim_t)n * 3 + 50)
		guest_skip("the limit of open files is too low");
	file = calloc(n, sizeof(*file));
	p = calloc(n, sizeof(*p));
	MUST(mkdir(guest_path("many"), 0755));
	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "many/%d", i);
		file[i] = MUST(open(guest_path(name), O_RDWR | O_CREAT, 0600));
		MUST(lseek(file[i], i * 3, SEEK_SET));
		MUST(pipe(p[i]));
		c = i;
		SAME("written", write(p[i][1], &c, 1), 1);
	}
	guest_ready_wait();
	if (SPOIL("offset"))
		lseek(file[n - 1], 0, SEEK_SET);
	if (SPOIL("swapped"))
		dup2(file[1], file[2]);
	if (SPOIL("pipe")) {
		SAME("written", write(p[n / 2][1], "x", 1), 1);
		MUST(read(p[n / 2][0], &c, 1));
	}
	for (int i = 0; i < n; i++) {
		struct stat a, b;

		SAME("offset", lseek(file[i], 0, SEEK_CUR), i * 3);
		snprintf(name, sizeof(name), "many/%d", i);
		MUST(fstat(file[i], &a));
		MUST(stat(guest_path(name), &b));
		SAME("inode", a.st_ino, b.st_ino);
		SAME("read", read(p[i][0], &c, 1), 1);
		SAME("byte", (unsigned char)c, i & 0xff);
	}
	guest_pass();
}
