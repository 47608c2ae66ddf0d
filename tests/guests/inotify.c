/* inotify: watches with their numbers and masks, on a file and a directory, gaps; they still tell. */
#include "guest.h"
#include <sys/inotify.h>

int main(int argc, char **argv)
{
	char buf[4096] __attribute__((aligned(8)));
	struct inotify_event *ev = (void *)buf;
	int fd, dir, file, gap, n;

	guest_init(argc, argv);
	MUST(mkdir(guest_path("d"), 0755));
	MUST(mkdir(guest_path("e"), 0755));
	close(MUST(open(guest_path("file"), O_WRONLY | O_CREAT, 0600)));
	fd = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
	gap = MUST(inotify_add_watch(fd, guest_path("e"), IN_CREATE));
	dir = MUST(inotify_add_watch(fd, guest_path("d"), IN_CREATE | IN_ONLYDIR));
	MUST(inotify_rm_watch(fd, gap));
	MUST(read(fd, buf, sizeof(buf)));
	file = MUST(inotify_add_watch(fd, guest_path("file"), IN_ATTRIB));
	guest_ready_wait();
	if (SPOIL("watch"))
		inotify_rm_watch(fd, dir);
	if (SPOIL("mask"))
		inotify_add_watch(fd, guest_path("file"), IN_ACCESS);
	if (SPOIL("number"))
		dir++;
	if (SPOIL("extra"))
		MUST(chmod(guest_path("file"), 0611));
	CHECK(read(fd, buf, sizeof(buf)) == -1 && errno == EAGAIN, "an event of nothing we did (mask 0x%x, name %s)", ev->mask,
	      ev->len ? ev->name : "");
	close(MUST(open(guest_path("d/new"), O_WRONLY | O_CREAT, 0600)));
	n = read(fd, buf, sizeof(buf));
	CHECK(n > 0, "no event of the directory");
	SAME("watch", ev->wd, dir);
	SAME("event", ev->mask, IN_CREATE);
	CHECK(!strcmp(ev->name, "new"), "name %s", ev->name);
	MUST(chmod(guest_path("file"), 0640));
	CHECK(read(fd, buf, sizeof(buf)) > 0, "no event of the file");
	SAME("watch", ev->wd, file);
	SAME("event", ev->mask, IN_ATTRIB);
	close(MUST(open(guest_path("e/new"), O_WRONLY | O_CREAT, 0600)));
	CHECK(read(fd, buf, sizeof(buf)) == -1, "the removed watch is back");
	guest_pass();
}
