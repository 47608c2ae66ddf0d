/* Pipes: contents, capacity, closed ends, non-blocking, an end shared with a child. */
#include "guest.h"

static int shared[2];

static void child(UNUSED void *arg)
{
	char c;

	close(shared[1]);
	guest_child_ready_wait();
	if (SPOIL("unshared")) {
		int other[2];

		MUST(pipe2(other, O_NONBLOCK));
		MUST(dup2(other[0], shared[0]));
	}
	SAME("read of the shared pipe", read(shared[0], &c, 1), 1);
	SAME("byte of the shared pipe", c, 'x');
	SAME("second byte", read(shared[0], &c, 1), 1);
	SAME("end of the shared pipe", read(shared[0], &c, 1), 0);
}

int main(int argc, char **argv)
{
	int full[2], half[2], deaf[2], queued;
	char *data = malloc(200000), *back = malloc(200000);
	pid_t kid;

	guest_init(argc, argv);
	guest_fill(data, 200000, 9);
	signal(SIGPIPE, SIG_IGN);
	MUST(pipe2(full, O_NONBLOCK));
	MUST(fcntl(full[0], F_SETPIPE_SZ, 1 << 18));
	SAME("written", write(full[1], data, 200000), 200000);
	/* The write end is gone, the contents are not. */
	MUST(pipe(half));
	SAME("written", write(half[1], "leftover", 8), 8);
	close(half[1]);
	MUST(pipe(deaf));
	close(deaf[0]);
	MUST(pipe(shared));
	kid = guest_child(child, NULL);
	SAME("written", write(shared[1], "x", 1), 1);
	guest_ready_wait();

	if (SPOIL("size"))
		fcntl(full[0], F_SETPIPE_SZ, 1 << 19);
	SAME("capacity", fcntl(full[0], F_GETPIPE_SZ), 1 << 18);
	SAME("flags of the read end", fcntl(full[0], F_GETFL), O_RDONLY | O_NONBLOCK);
	SAME("flags of the write end", fcntl(full[1], F_GETFL), O_WRONLY | O_NONBLOCK);
	MUST(ioctl(full[0], FIONREAD, &queued));
	SAME("queued", queued, 200000);
	if (SPOIL("content"))
		SAME("read", read(full[0], back, 1), 1);
	MUST(read(full[0], back, 200000));
	CHECK(!memcmp(data, back, 200000), "contents of the pipe changed");
	CHECK(read(full[0], back, 1) == -1 && errno == EAGAIN, "the pipe holds more than before");

	if (SPOIL("half"))
		MUST(read(half[0], back, 8));
	SAME("read of the half pipe", read(half[0], back, 100), 8);
	CHECK(!memcmp(back, "leftover", 8), "contents of the half pipe changed");
	SAME("end of the half pipe", read(half[0], back, 100), 0);
	if (SPOIL("deaf")) {
		MUST(pipe(full));
		MUST(dup2(full[1], deaf[1]));
	}
	CHECK(write(deaf[1], "x", 1) == -1 && errno == EPIPE, "the pipe without a reader takes data");

	SAME("written", write(shared[1], "y", 1), 1);
	close(shared[1]);
	guest_child_finish(kid);
	guest_pass();
}
