/*
 * A pid namespace below that of the root with proc file systems of its own, as `unshare --mount-proc` and runtimes inside of
 * containers make it: in /proc, where a tmpfs hides a folder and a bind shows another part, and a second one with options. Files of
 * it are open, and it shows who is in the namespace, by the numbers there.
 */
#include "guest.h"
#include <sys/mount.h>

/* Which process the folder shows as the one who asks. */
static int self_in(const char *proc)
{
	char path[PATH_MAX], to[32] = "";

	snprintf(path, sizeof(path), "%s/self", proc);
	return readlink(path, to, sizeof(to) - 1) < 0 ? -1 : atoi(to);
}

static void first(UNUSED void *arg)
{
	const char *second = guest_path("p");
	char line[256] = "", path[PATH_MAX], *line_of;
	int stat, folder;
	pid_t child;

	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	MUST(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
	MUST(mount("mask", "/proc/tty", "tmpfs", MS_RDONLY, "size=4k"));
	MUST(mount("/proc/sys", "/proc/sys", NULL, MS_BIND, NULL));
	MUST(mount(NULL, "/proc/sys", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL));
	mkdir(second, 0700);
	MUST(mount("second", second, "proc", 0, "hidepid=invisible"));
	child = guest_child(guest_idle, NULL);
	SAME("own pid", getpid(), 1);
	SAME("pid of the child", child, 2);
	stat = MUST(open("/proc/2/stat", O_RDONLY));
	folder = MUST(open("/proc/1", O_RDONLY | O_DIRECTORY));
	MUST(chdir("/proc/2"));
	guest_child_ready_wait();

	if (SPOIL("proc"))
		MUST(umount2("/proc", MNT_DETACH));
	SAME("own number in /proc", self_in("/proc"), 1);
	if (SPOIL("second"))
		MUST(umount2(second, MNT_DETACH));
	SAME("own number in the second one", self_in(second), 1);
	snprintf(path, sizeof(path), "%s proc ", second);
	if (SPOIL("options"))
		MUST(mount(NULL, second, NULL, MS_REMOUNT, "hidepid=off"));
	line_of = strstr(guest_slurp("/proc/1/mounts"), path);
	CHECK(line_of, "the second one is not listed");
	line_of[strcspn(line_of, "\n")] = 0;
	CHECK(strstr(line_of, "hidepid=invisible"), "its options are gone: %s", line_of);
	if (SPOIL("mask"))
		MUST(umount2("/proc/tty", MNT_DETACH));
	CHECK(access("/proc/tty/drivers", F_OK) < 0, "what was masked is seen");
	if (SPOIL("part"))
		MUST(umount2("/proc/sys", MNT_DETACH));
	CHECK(open("/proc/sys/kernel/ns_last_pid", O_WRONLY) < 0 && errno == EROFS, "the part can be written: %s", strerror(errno));
	if (SPOIL("file"))
		stat = MUST(open("/proc/1/stat", O_RDONLY));
	MUST(read(stat, line, sizeof(line) - 1));
	CHECK(!strncmp(line, "2 (nested_proc)", 15), "the file of the child reads %s", line);
	if (SPOIL("folder"))
		folder = MUST(open("/proc/2", O_RDONLY | O_DIRECTORY));
	CHECK(readlinkat(folder, "cwd", path, sizeof(path)) > 0 && !strncmp(path, "/proc/2", 7), "the folder is that of another process");
	guest_child_finish(child);
}

int main(int argc, char **argv)
{
	pid_t child;

	guest_init(argc, argv);
	child = guest_child_flags(first, NULL, CLONE_NEWPID | CLONE_NEWNS);
	guest_ready_wait();
	SAME("the root's number in its /proc", self_in("/proc"), getpid());
	CHECK(self_in(guest_path("p")) < 0, "a mount of the other namespace is seen");
	guest_child_finish(child);
	guest_pass();
}
