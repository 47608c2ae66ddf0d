/* Deleted files that are still open: contents, size, mode, owner, opened twice, mapped, shared with a child. */
#include "guest.h"

static int fd;

static void child(UNUSED void *arg)
{
	int own = MUST(open("/proc/self/fd/0", O_RDONLY | O_PATH));

	close(own);
	guest_child_ready_wait();
	if (SPOIL("shared"))
		dup2(open(guest_path("other"), O_RDWR | O_CREAT, 0600), fd);
	SAME("written by the child", pwrite(fd, "child", 5, 100), 5);
}

int main(int argc, char **argv)
{
	char *data = malloc(70000), *back = malloc(70000), *map;
	int twice, empty;
	struct stat st;
	pid_t kid;

	guest_init(argc, argv);
	guest_fill(data, 70000, 17);
	fd = MUST(open(guest_path("ghost"), O_RDWR | O_CREAT | O_EXCL, 0600));
	SAME("written", write(fd, data, 70000), 70000);
	MUST(fchmod(fd, 0751));
	MUST(fchown(fd, 12, 34));
	twice = MUST(open(guest_path("ghost"), O_RDONLY | O_NONBLOCK));
	map = mmap(NULL, 70000, PROT_READ, MAP_SHARED, fd, 0);
	MUST(lseek(fd, 50, SEEK_SET));
	MUST(lseek(twice, 60, SEEK_SET));
	MUST(unlink(guest_path("ghost")));
	empty = MUST(open(guest_path("empty"), O_WRONLY | O_CREAT | O_APPEND, 0600));
	MUST(unlink(guest_path("empty")));
	/* The name is taken by somebody else now: that one must not be touched. */
	close(MUST(open(guest_path("ghost"), O_WRONLY | O_CREAT, 0600)));
	kid = guest_child(child, NULL);
	guest_ready_wait();
	if (SPOIL("content"))
		SAME("written", pwrite(fd, "x", 1, 200), 1);
	if (SPOIL("mode"))
		fchmod(fd, 0600);
	if (SPOIL("owner"))
		fchown(fd, 0, 0);
	if (SPOIL("twice"))
		dup2(empty, twice);
	if (SPOIL("map"))
		mmap(map, 70000, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (SPOIL("linked"))
		dup2(open(guest_path("ghost"), O_RDWR), empty);
	SAME("read", pread(fd, back, 70000, 0), 70000);
	CHECK(!memcmp(data, back, 70000), "contents changed");
	SAME("offset", lseek(fd, 0, SEEK_CUR), 50);
	SAME("offset of the second", lseek(twice, 0, SEEK_CUR), 60);
	SAME("flags of the second", fcntl(twice, F_GETFL) & ~0100000, O_RDONLY | O_NONBLOCK);
	MUST(fstat(fd, &st));
	SAME("links", st.st_nlink, 0);
	SAME("mode", st.st_mode & 07777, 0751);
	SAME("owner", st.st_uid, 12);
	SAME("group", st.st_gid, 34);
	guest_child_finish(kid);
	SAME("read", pread(twice, back, 5, 100), 5);
	CHECK(!memcmp(back, "child", 5), "the child's write does not show in the second open file");
	CHECK(!memcmp(map + 100, "child", 5), "the child's write does not show in the mapping");
	MUST(fstat(empty, &st));
	SAME("links of the empty one", st.st_nlink, 0);
	SAME("size of the empty one", st.st_size, 0);
	MUST(stat(guest_path("ghost"), &st));
	SAME("size of the file with the old name", st.st_size, 0);
	guest_pass();
}
