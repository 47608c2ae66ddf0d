/* FIFOs: contents, both ends in one task, opened read-write, a reader in a child, a deleted one. */
#include "guest.h"

static int rd;

static void child(UNUSED void *arg)
{
	char buf[16] = "";

	rd = MUST(open(guest_path("fifo"), O_RDONLY | O_NONBLOCK));
	MUST(fcntl(rd, F_SETFL, 0));
	guest_child_ready_wait();
	SAME("read", read(rd, buf, sizeof(buf)), 6);
	CHECK(!strcmp(buf, "queued"), "read %s", buf);
}

int main(int argc, char **argv)
{
	char buf[16] = "";
	int hold, wr, both, gone;
	pid_t kid;

	guest_init(argc, argv);
	MUST(mkfifo(guest_path("fifo"), 0600));
	/* A reader must be there before a writer can open without waiting. */
	hold = MUST(open(guest_path("fifo"), O_RDONLY | O_NONBLOCK));
	wr = MUST(open(guest_path("fifo"), O_WRONLY | O_NONBLOCK));
	kid = guest_child(child, NULL);
	SAME("written", write(wr, "queued", 6), 6);
	MUST(mkfifo(guest_path("both"), 0600));
	both = MUST(open(guest_path("both"), O_RDWR));
	MUST(fcntl(both, F_SETPIPE_SZ, 8 * PAGE));
	SAME("written", write(both, "self", 4), 4);
	MUST(mkfifo(guest_path("gone"), 0600));
	gone = MUST(open(guest_path("gone"), O_RDWR | O_NONBLOCK));
	MUST(unlink(guest_path("gone")));
	SAME("written", write(gone, "ghost", 5), 5);
	guest_ready_wait();
	if (SPOIL("content"))
		MUST(read(hold, buf, 1));
	if (SPOIL("both"))
		MUST(read(both, buf, 1));
	if (SPOIL("size"))
		fcntl(both, F_SETPIPE_SZ, 16 * PAGE);
	if (SPOIL("gone"))
		MUST(read(gone, buf, 1));
	SAME("flags of the writer", fcntl(wr, F_GETFL) & ~0100000, O_WRONLY | O_NONBLOCK);
	SAME("flags of the holder", fcntl(hold, F_GETFL) & ~0100000, O_RDONLY | O_NONBLOCK);
	guest_child_finish(kid);
	SAME("capacity", fcntl(both, F_GETPIPE_SZ), 8 * PAGE);
	SAME("read", read(both, buf, sizeof(buf)), 4);
	CHECK(!memcmp(buf, "self", 4), "read %s", buf);
	SAME("read of the deleted one", read(gone, buf, sizeof(buf)), 5);
	CHECK(!memcmp(buf, "ghost", 5), "read %s", buf);
	guest_pass();
}
