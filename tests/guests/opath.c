/* O_PATH descriptors: of a file, a directory, a symbolic link itself, a file without any rights. */
#include "guest.h"

int main(int argc, char **argv)
{
	int file, dir, link, locked;
	char text[64] = "", path[64];
	struct stat st;

	guest_init(argc, argv);
	close(MUST(open(guest_path("file"), O_WRONLY | O_CREAT, 0600)));
	close(MUST(open(guest_path("locked"), O_WRONLY | O_CREAT, 0)));
	MUST(symlink("nowhere/at/all", guest_path("link")));
	file = MUST(open(guest_path("file"), O_PATH | O_CLOEXEC));
	dir = MUST(open(guest_dir, O_PATH | O_DIRECTORY));
	link = MUST(open(guest_path("link"), O_PATH | O_NOFOLLOW));
	locked = MUST(open(guest_path("locked"), O_PATH));
	guest_ready_wait();
	if (SPOIL("file"))
		dup2(open(guest_path("file"), O_RDONLY), file);
	if (SPOIL("dir"))
		close(dir);
	if (SPOIL("link"))
		dup2(file, link);
	if (SPOIL("locked"))
		dup2(file, locked);
	SAME("flags", fcntl(file, F_GETFL), O_PATH);
	SAME("flags of the directory", fcntl(dir, F_GETFL), O_PATH | O_DIRECTORY);
	SAME("flags of the link", fcntl(link, F_GETFL), O_PATH | O_NOFOLLOW);
	CHECK(read(file, text, 1) == -1 && errno == EBADF, "an O_PATH file can be read");
	MUST(fstatat(dir, "file", &st, 0));
	MUST(fstat(link, &st));
	CHECK(S_ISLNK(st.st_mode), "the link is no link");
	MUST(readlinkat(link, "", text, sizeof(text) - 1));
	CHECK(!strcmp(text, "nowhere/at/all"), "the link leads to %s", text);
	MUST(fstat(locked, &st));
	SAME("mode of the locked file", st.st_mode & 0777, 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	close(MUST(open(path, O_RDWR)));
	guest_pass();
}
