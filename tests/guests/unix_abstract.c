/* Abstract names, with zeros in them, and names the kernel chose. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX }, is, was;
	int l, c, s, own;
	socklen_t len, got, wlen = sizeof(was);
	char buf[8];

	guest_init(argc, argv);
	len = offsetof(struct sockaddr_un, sun_path) + 1 + snprintf(a.sun_path + 1, 90, "%s-abs", guest_dir);
	/* two zeros more: they are part of the name */
	len += 2;
	l = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(l, (void *)&a, len));
	MUST(listen(l, 3));
	c = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(connect(c, (void *)&a, len));
	s = MUST(accept(l, NULL, NULL));
	own = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	MUST(bind(own, (void *)&a, sizeof(sa_family_t)));
	MUST(getsockname(own, (void *)&was, &wlen));
	guest_ready_wait();

	got = sizeof(is);
	MUST(getsockname(l, (void *)&is, &got));
	SAME("length of the name", got, SPOIL("length") ? 3 : len);
	CHECK(!memcmp(&is, &a, len), "another name");
	got = sizeof(is);
	MUST(getpeername(c, (void *)&is, &got));
	CHECK(got == len && !memcmp(&is, &a, len), "the peer has another name");
	got = sizeof(is);
	MUST(getsockname(own, (void *)&is, &got));
	CHECK(got == wlen && !memcmp(&is, &was, got) == !SPOIL("chosen"), "the chosen name is another");
	SAME("sent", send(c, "hi", 2, 0), 2);
	SAME("received", recv(s, buf, sizeof(buf), 0), SPOIL("talk") ? 1 : 2);
	c = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(connect(c, (void *)&a, len));
	guest_pass();
}
