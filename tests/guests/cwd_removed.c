/* The working directory was removed; the directory and one in it are also open. */
#include "guest.h"

int main(int argc, char **argv)
{
	struct stat a, b;
	char link[PATH_MAX] = "";
	int fd;

	guest_init(argc, argv);
	MUST(mkdir(guest_path("gone"), 0710));
	MUST(chdir(guest_path("gone")));
	fd = MUST(open(".", O_RDONLY | O_DIRECTORY));
	MUST(rmdir(guest_path("gone")));
	guest_ready_wait();
	if (SPOIL("cwd"))
		MUST(chdir("/"));
	if (SPOIL("open"))
		dup2(open("/", O_RDONLY | O_DIRECTORY), fd);
	if (SPOIL("back"))
		MUST(mkdir(guest_path("gone"), 0710));
	MUST(stat(".", &a));
	MUST(fstat(fd, &b));
	SAME("inode of cwd and open directory", a.st_ino, b.st_ino);
	SAME("links of the working directory", a.st_nlink, 0);
	SAME("mode", a.st_mode & 07777, 0710);
	MUST(readlink("/proc/self/cwd", link, sizeof(link) - 1));
	CHECK(strstr(link, " (deleted)"), "cwd is %s", link);
	CHECK(open("new", O_WRONLY | O_CREAT, 0600) == -1 && errno == ENOENT, "a removed directory takes files");
	CHECK(access(guest_path("gone"), F_OK) == -1, "the removed name is back");
	guest_pass();
}
