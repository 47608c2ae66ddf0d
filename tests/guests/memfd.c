/* memfd: name, contents, holes, size, offset, seals, mode, a shared mapping, two open files of one memfd. */
#include "guest.h"

int main(int argc, char **argv)
{
	char data[3 * PAGE], back[3 * PAGE], *map, path[64], link[64] = "";
	int fd, again, sealed;
	struct stat st;

	guest_init(argc, argv);
	guest_fill(data, sizeof(data), 11);
	fd = MUST(memfd_create("some name", MFD_ALLOW_SEALING | MFD_CLOEXEC));
	SAME("written", pwrite(fd, data, sizeof(data), 10 * PAGE), sizeof(data));
	MUST(ftruncate(fd, 100 * PAGE + 7));
	MUST(fchmod(fd, 0640));
	MUST(lseek(fd, 12345, SEEK_SET));
	map = mmap(NULL, 100 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = MUST(open(path, O_RDONLY));
	sealed = MUST(memfd_create("sealed", MFD_ALLOW_SEALING));
	SAME("written", write(sealed, data, PAGE), PAGE);
	MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE));
	guest_ready_wait();
	if (SPOIL("content"))
		map[11 * PAGE] ^= 1;
	if (SPOIL("size"))
		MUST(ftruncate(fd, 100 * PAGE));
	if (SPOIL("offset"))
		lseek(fd, 0, SEEK_SET);
	if (SPOIL("seals"))
		fcntl(sealed, F_ADD_SEALS, F_SEAL_GROW);
	if (SPOIL("mode"))
		fchmod(fd, 0600);
	if (SPOIL("mapping"))
		mmap(map, 100 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
	if (SPOIL("again"))
		dup2(sealed, again);
	if (SPOIL("name"))
		strcpy(path, "/proc/self/fd/0");
	SAME("read", pread(fd, back, sizeof(back), 10 * PAGE), sizeof(back));
	CHECK(!memcmp(data, back, sizeof(data)), "contents changed");
	MUST(fstat(fd, &st));
	SAME("size", st.st_size, 100 * PAGE + 7);
	SAME("mode", st.st_mode & 07777, 0640);
	SAME("offset", lseek(fd, 0, SEEK_CUR), 12345);
	SAME("offset of the second open file", lseek(again, 0, SEEK_CUR), 0);
	SAME("access of the second open file", fcntl(again, F_GETFL) & O_ACCMODE, O_RDONLY);
	map[50 * PAGE] = 'x';
	SAME("read", pread(again, back, 1, 50 * PAGE), 1);
	SAME("byte through the mapping", back[0], 'x');
	MUST(readlink(path, link, sizeof(link) - 1));
	CHECK(!strcmp(link, "/memfd:some name (deleted)"), "the name is %s", link);
	SAME("seals", fcntl(fd, F_GET_SEALS), 0);
	SAME("seals", fcntl(sealed, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_WRITE);
	SAME("close-on-exec", fcntl(fd, F_GETFD), FD_CLOEXEC);
	CHECK(write(sealed, "x", 1) == -1 && errno == EPERM, "the sealed memfd can be written");
	guest_pass();
}
