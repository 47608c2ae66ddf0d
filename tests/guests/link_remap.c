/* A file whose name was deleted while another hard link is left: it must stay the same inode as that link. */
#include "guest.h"

int main(int argc, char **argv)
{
	struct stat a, b;
	int fd, ro;
	char c;

	guest_init(argc, argv);
	fd = MUST(open(guest_path("first"), O_RDWR | O_CREAT, 0600));
	ro = MUST(open(guest_path("first"), O_RDONLY));
	SAME("written", write(fd, "hello", 5), 5);
	MUST(link(guest_path("first"), guest_path("second")));
	MUST(unlink(guest_path("first")));
	guest_ready_wait();
	if (SPOIL("inode"))
		dup2(open(guest_path("third"), O_RDWR | O_CREAT, 0600), fd);
	if (SPOIL("offset"))
		lseek(fd, 0, SEEK_SET);
	if (SPOIL("second"))
		dup2(open("/dev/null", O_RDONLY), ro);
	if (SPOIL("leftover"))
		MUST(link(guest_path("second"), guest_path("leftover")));
	MUST(fstat(fd, &a));
	MUST(stat(guest_path("second"), &b));
	SAME("inode", a.st_ino, b.st_ino);
	SAME("offset", lseek(fd, 0, SEEK_CUR), 5);
	MUST(fstat(ro, &b));
	SAME("inode of the second open file", a.st_ino, b.st_ino);
	SAME("written", write(fd, "!", 1), 1);
	SAME("read", pread(ro, &c, 1, 5), 1);
	SAME("byte", c, '!');
	/* No helper name may stay behind. */
	SAME("links", a.st_nlink, 1);
	CHECK(access(guest_path("first"), F_OK) == -1, "the deleted name is back");
	guest_pass();
}
