/* fanotify: marks on an inode with masks and ignored masks, flags of the group; it still tells. */
#include "guest.h"
#include <sys/fanotify.h>

int main(int argc, char **argv)
{
	char buf[4096] __attribute__((aligned(8))), path[64], was[2048], c;
	struct fanotify_event_metadata *ev = (void *)buf;
	int fd, file, at[2];

	guest_init(argc, argv);
	close(MUST(open(guest_path("file"), O_WRONLY | O_CREAT, 0600)));
	close(MUST(open(guest_path("quiet"), O_WRONLY | O_CREAT, 0600)));
	fd = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_CLOEXEC, O_RDONLY);
	if (fd < 0)
		guest_skip("no fanotify");
	MUST(fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN | FAN_MODIFY, AT_FDCWD, guest_path("file")));
	MUST(fanotify_mark(fd, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, guest_path("quiet")));
	MUST(fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_MODIFY, AT_FDCWD, guest_path("quiet")));
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	snprintf(was, sizeof(was), "%s", strstr(guest_slurp(path), "fanotify flags") ?: "");
	CHECK(*was, "fdinfo without fanotify");
	guest_ready_wait();
	if (SPOIL("mark"))
		fanotify_mark(fd, FAN_MARK_REMOVE, FAN_OPEN, AT_FDCWD, guest_path("file"));
	if (SPOIL("ignored"))
		fanotify_mark(fd, FAN_MARK_REMOVE | FAN_MARK_IGNORED_MASK, FAN_MODIFY, AT_FDCWD, guest_path("quiet"));
	if (SPOIL("flags"))
		fcntl(fd, F_SETFD, 0);
	CHECK(read(fd, buf, sizeof(buf)) == -1 && errno == EAGAIN, "an event of nothing we did (0x%llx)", ev->mask);
	file = MUST(open(guest_path("file"), O_RDWR));
	CHECK(read(fd, buf, sizeof(buf)) > 0, "no event");
	SAME("event", ev->mask, FAN_OPEN);
	SAME("who", ev->pid, getpid());
	close(ev->fd);
	SAME("written", write(file, "x", 1), 1);
	CHECK(read(fd, buf, sizeof(buf)) > 0, "no second event");
	SAME("second event", ev->mask, FAN_MODIFY);
	SAME("read through the event", pread(ev->fd, &c, 1, 0), 1);
	at[0] = MUST(open(guest_path("quiet"), O_RDWR));
	SAME("written", write(at[0], "x", 1), 1);
	CHECK(read(fd, buf, sizeof(buf)) == -1, "the ignored event is told (0x%llx)", ev->mask);
	SAME("close-on-exec", fcntl(fd, F_GETFD), FD_CLOEXEC);
	{
		const char *now = strstr(guest_slurp(path), "fanotify flags") ?: "";

		SAME("flags line", strcspn(now, "\n"), strcspn(was, "\n"));
		CHECK(!strncmp(now, was, strcspn(was, "\n")), "flags: %.60s", now);
	}
	guest_pass();
}
