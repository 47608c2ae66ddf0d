/* Private file mappings: pages of the file, pages copied on write, an offset, a tail behind the end of the file. */
#include "guest.h"

int main(int argc, char **argv)
{
	char *data = malloc(16 * PAGE), *rw, *ro, *tail, *deny;
	int fd;

	guest_init(argc, argv);
	guest_fill(data, 16 * PAGE, 5);
	fd = MUST(open(guest_path("file"), O_RDWR | O_CREAT, 0644));
	SAME("written", write(fd, data, 16 * PAGE), 16 * PAGE);
	rw = mmap(NULL, 12 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 4 * PAGE);
	ro = mmap(NULL, 16 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	tail = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 15 * PAGE);
	deny = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	close(fd);
	rw[0] = 'A';
	rw[5 * PAGE + 100] = 'B';
	tail[3] = 'C';
	/* Written, then made read-only: the copy must survive. */
	deny[PAGE] = 'D';
	MUST(mprotect(deny, 2 * PAGE, PROT_READ));
	guest_ready_wait();
	if (SPOIL("copied"))
		rw[5 * PAGE + 100] = 0;
	if (SPOIL("clean"))
		rw[7 * PAGE] ^= 1;
	if (SPOIL("read-only"))
		mmap(deny, 2 * PAGE, PROT_READ, MAP_PRIVATE, open(guest_path("file"), O_RDONLY), 0);
	if (SPOIL("read-only")) {
		mprotect(deny, 2 * PAGE, PROT_READ | PROT_WRITE);
		deny[PAGE] = 0;
		mprotect(deny, 2 * PAGE, PROT_READ);
	}
	if (SPOIL("name"))
		mmap(ro, 16 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	SAME("copied byte", rw[0], 'A');
	SAME("copied byte", rw[5 * PAGE + 100], 'B');
	SAME("copied byte", tail[3], 'C');
	SAME("copied byte", deny[PAGE], 'D');
	rw[0] = data[4 * PAGE];
	rw[5 * PAGE + 100] = data[9 * PAGE + 100];
	CHECK(!memcmp(rw, data + 4 * PAGE, 12 * PAGE), "pages of the file changed");
	CHECK(!memcmp(ro, data, 16 * PAGE), "the read-only view changed");
	CHECK(strstr(guest_map(ro), "/file\n") && strstr(guest_map(ro), " r--p 00000000 "), "the view is %s", guest_map(ro));
	CHECK(strstr(guest_map(rw), "/file\n") && strstr(guest_map(rw), " rw-p 00004000 "), "the view is %s", guest_map(rw));
	CHECK(strstr(guest_map(deny), " r--p "), "the written view is %s", guest_map(deny));
	/* Still the file: a change of an untouched page shows. */
	fd = MUST(open(guest_path("file"), O_RDWR));
	SAME("written", pwrite(fd, "Z", 1, 2 * PAGE), 1);
	SAME("changed byte of the file", ro[2 * PAGE], 'Z');
	guest_pass();
}
