/* A deleted sparse file, much larger than what is in it: size, data, holes. argv[3] is its size in MiB (512). */
#include "guest.h"

int main(int argc, char **argv)
{
	char data[8 * PAGE], back[8 * PAGE];
	off_t size;
	struct stat st;
	int fd;

	guest_init(argc, argv);
	size = (off_t)guest_arg(0, 512) << 20;
	guest_fill(data, sizeof(data), 18);
	fd = MUST(open(guest_path("sparse"), O_RDWR | O_CREAT, 0600));
	for (off_t at = 0; at < size; at += size / 8)
		SAME("written", pwrite(fd, data, sizeof(data), at + 5 * PAGE), sizeof(data));
	MUST(ftruncate(fd, size + 123));
	MUST(unlink(guest_path("sparse")));
	guest_ready_wait();
	if (SPOIL("content"))
		SAME("written", pwrite(fd, "x", 1, size / 2 + 6 * PAGE), 1);
	if (SPOIL("size"))
		MUST(ftruncate(fd, size));
	if (SPOIL("holes"))
		MUST(posix_fallocate(fd, 0, 40 << 20));
	for (off_t at = 0; at < size; at += size / 8) {
		SAME("read", pread(fd, back, sizeof(back), at + 5 * PAGE), sizeof(back));
		CHECK(!memcmp(data, back, sizeof(data)), "data at %ld changed", (long)at);
		SAME("read", pread(fd, back, PAGE, at + 100 * PAGE), PAGE);
		for (size_t i = 0; i < PAGE; i++)
			CHECK(!back[i], "the hole at %ld is not zero", (long)at);
	}
	MUST(fstat(fd, &st));
	SAME("size", st.st_size, size + 123);
	CHECK(st.st_blocks * 512 < 8 << 20, "the holes are filled: %ld bytes in use", st.st_blocks * 512l);
	guest_pass();
}
