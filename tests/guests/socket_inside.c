/* A grandchild with a pair of connected sockets that must go on talking. */
#include "guest.h"
#include <sys/socket.h>

static void grandchild(UNUSED void *arg)
{
	int pair[2];
	char c = 0;

	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	SAME("sent", send(pair[0], "s", 1, 0), 1);
	guest_child_ready_wait();
	if (SPOIL("talk"))
		shutdown(pair[1], SHUT_RD);
	if (SPOIL("talk"))
		recv(pair[1], &c, 1, 0);
	SAME("received", recv(pair[1], &c, 1, 0), 1);
	SAME("byte", c, 's');
}

static void child(UNUSED void *arg)
{
	pid_t kid = guest_child(grandchild, NULL);

	guest_child_ready_wait();
	guest_child_finish(kid);
}

int main(int argc, char **argv)
{
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	guest_ready_wait();
	guest_child_finish(kid);
	guest_pass();
}
