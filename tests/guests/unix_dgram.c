/* Datagram sockets: a receiver with several senders of different names, order and addresses of what waits in its queue,
 * connections in one direction, and a sender that is gone. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_un addr(const char *name, socklen_t *len)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	/* abstract, with the work folder in it so that no two runs meet */
	*len = offsetof(struct sockaddr_un, sun_path) + 1 + snprintf(a.sun_path + 1, 90, "%s-%s", guest_dir, name);
	return a;
}

static int bound(const char *name)
{
	socklen_t len;
	struct sockaddr_un a = addr(name, &len);
	int s = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));

	MUST(bind(s, (void *)&a, len));
	return s;
}

static void arrives(int fd, const char *text, const char *from)
{
	struct sockaddr_un a = { 0 }, w;
	socklen_t len = sizeof(a), want;
	char buf[32] = "";

	SAME(text, recvfrom(fd, buf, sizeof(buf), MSG_DONTWAIT, (void *)&a, &len), strlen(text));
	CHECK(!strcmp(buf, text), "%s arrived, not %s", buf, text);
	if (!from) {
		CHECK(len <= sizeof(sa_family_t), "%s has a sender", text);
		return;
	}
	w = addr(from, &want);
	CHECK(len == want && !memcmp(&a, &w, len), "%s came from %s", text, a.sun_path + 1);
}

int main(int argc, char **argv)
{
	int r, one, two, none, gone, back;
	struct sockaddr_un a;
	socklen_t len;

	guest_init(argc, argv);
	r = bound("receiver");
	one = bound("one");
	two = bound("two");
	none = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	gone = bound("gone");
	a = addr("receiver", &len);
	MUST(connect(one, (void *)&a, len));
	MUST(connect(none, (void *)&a, len));
	SAME("sent", send(one, "first", 5, 0), 5);
	SAME("sent", sendto(two, "second", 6, 0, (void *)&a, len), 6);
	SAME("sent", send(one, "", 0, 0), 0);
	SAME("sent", sendto(gone, "third", 5, 0, (void *)&a, len), 5);
	SAME("sent", send(none, "fourth", 6, 0), 6);
	SAME("sent", send(one, "fifth", 5, 0), 5);
	close(gone);
	/* an answer goes one way only */
	a = addr("one", &len);
	back = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
	MUST(connect(r, (void *)&a, len));
	guest_ready_wait();

	if (SPOIL("order"))
		MUST(recv(r, &a, 1, 0));
	arrives(r, "first", "one");
	arrives(r, "second", SPOIL("sender") ? "one" : "two");
	arrives(r, "", "one");
	arrives(r, "third", "gone");
	arrives(r, "fourth", NULL);
	arrives(r, "fifth", "one");
	CHECK(recv(r, &a, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "one more is in the queue");
	SAME("sent", send(r, "answer", 6, 0), 6);
	if (SPOIL("answer"))
		MUST(dup2(back, one));
	arrives(one, "answer", "receiver");
	SAME("sent", send(one, "again", 5, 0), 5);
	arrives(r, "again", "one");
	/* r is connected to one, so nobody else may send to it */
	a = addr("receiver", &len);
	CHECK(sendto(two, "x", 1, 0, (void *)&a, len) == -1 && errno == EPERM, "a stranger may send");
	guest_pass();
}
