/* Out-of-band bytes of unix sockets. Include after guest.h. */
#include <sys/socket.h>

/* Do they behave as since Linux 6.11? Before, what is behind such a byte was not to be had at once, or it was shown among the others. */
static inline int oob_works(void)
{
	char b[8] = "";
	int p[2], ok;

	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p));
	if (send(p[0], "?", 1, MSG_OOB) != 1)
		return 0;
	SAME("sent", send(p[0], "rest", 4, 0), 4);
	ok = recv(p[1], b, sizeof(b), MSG_PEEK | MSG_DONTWAIT) == 4 && !memcmp(b, "rest", 4);
	ok = ok && recv(p[1], b, 1, MSG_OOB | MSG_DONTWAIT) == 1;
	ok = ok && recv(p[1], b, sizeof(b), MSG_DONTWAIT) == 4;
	close(p[0]);
	close(p[1]);
	return ok;
}
