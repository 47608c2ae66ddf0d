/* Regular files: offset, access mode, O_APPEND, O_NONBLOCK and friends, the same file opened twice, read-only mode 0. */
#include "guest.h"

int main(int argc, char **argv)
{
	int at, append, twice, ronly, wonly;
	char buf[16] = "";
	struct stat st;

	guest_init(argc, argv);
	at = MUST(open(guest_path("at"), O_RDWR | O_CREAT | O_EXCL, 0640));
	SAME("written", write(at, "0123456789", 10), 10);
	SAME("seek", lseek(at, 4, SEEK_SET), 4);
	twice = MUST(open(guest_path("at"), O_RDWR | O_NOATIME));
	SAME("seek", lseek(twice, 7, SEEK_SET), 7);
	append = MUST(open(guest_path("append"), O_WRONLY | O_CREAT | O_APPEND | O_SYNC, 0600));
	SAME("written", write(append, "abc", 3), 3);
	ronly = MUST(open(guest_path("at"), O_RDONLY | O_NONBLOCK | O_LARGEFILE));
	wonly = MUST(open(guest_path("far"), O_WRONLY | O_CREAT | O_DSYNC, 0600));
	SAME("seek", lseek(wonly, 1LL << 33, SEEK_SET), 1LL << 33);
	guest_ready_wait();

	if (SPOIL("offset"))
		lseek(at, 0, SEEK_SET);
	if (SPOIL("far"))
		lseek(wonly, 1, SEEK_SET);
	if (SPOIL("append"))
		fcntl(append, F_SETFL, 0);
	if (SPOIL("flags"))
		fcntl(ronly, F_SETFL, 0);
	if (SPOIL("mode")) {
		MUST(dup2(open(guest_path("at"), O_RDWR), ronly));
		fcntl(ronly, F_SETFL, O_NONBLOCK);
	}
	if (SPOIL("shared"))
		MUST(dup2(at, twice));
	SAME("offset", lseek(at, 0, SEEK_CUR), 4);
	SAME("other offset", lseek(twice, 0, SEEK_CUR), 7);
	SAME("far offset", lseek(wonly, 0, SEEK_CUR), 1LL << 33);
	SAME("read", read(at, buf, 2), 2);
	CHECK(!strcmp(buf, "45"), "read %s", buf);
	SAME("other offset", lseek(twice, 0, SEEK_CUR), 7);
	/* O_LARGEFILE is 0 to a 64-bit program, 0100000 to the kernel; glibc and F_GETFL disagree about it. */
	SAME("flags", fcntl(at, F_GETFL) & ~0100000, O_RDWR);
	SAME("flags of the second", fcntl(twice, F_GETFL) & ~0100000, O_RDWR | O_NOATIME);
	SAME("flags of append", fcntl(append, F_GETFL) & ~0100000, O_WRONLY | O_APPEND | O_SYNC);
	SAME("flags of read-only", fcntl(ronly, F_GETFL) & ~0100000, O_RDONLY | O_NONBLOCK);
	SAME("flags of write-only", fcntl(wonly, F_GETFL) & ~0100000, O_WRONLY | O_DSYNC);
	CHECK(write(ronly, "x", 1) == -1 && errno == EBADF, "the read-only file can be written");
	CHECK(read(wonly, buf, 1) == -1 && errno == EBADF, "the write-only file can be read");
	SAME("seek", lseek(append, 0, SEEK_SET), 0);
	SAME("written", write(append, "d", 1), 1);
	MUST(fstat(append, &st));
	SAME("size after append", st.st_size, 4);
	MUST(fstat(at, &st));
	SAME("mode", st.st_mode & 07777, 0640);
	guest_pass();
}
