/*
 * Formats of programs (binfmt_misc) of a user namespace of the tree's own: one by magic and mask, one by extension that is switched off,
 * one whose interpreter is open; and what they start.
 */
#include "mounts.h"

static void text(const char *path, const char *what)
{
	int fd = MUST(open(path, O_WRONLY));

	SAME(path, write(fd, what, strlen(what)), strlen(what));
	close(fd);
}

/* What the kernel tells of a format. */
static const char *format(const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "f/%s", name);
	return guest_slurp(guest_path(path));
}

static int runs(const char *program)
{
	pid_t pid = MUST(fork());
	int status;

	if (!pid) {
		execl(program, program, "argument", NULL);
		_exit(99);
	}
	MUST(waitpid(pid, &status, 0));
	return WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	const char *names[] = { "guest_magic", "guest_off", "guest_open" };
	char was[3][512];
	unsigned i;
	int fd;

	guest_init(argc, argv);
	if (strchr(guest_slurp("/proc/self/uid_map"), '4')) {
		MUST(unshare(CLONE_NEWUSER | CLONE_NEWNS));
		text("/proc/self/setgroups", "deny");
		text("/proc/self/uid_map", "0 0 1");
		text("/proc/self/gid_map", "0 0 1");
		change("/", MS_REC | MS_PRIVATE);
	}
	MUST(mkdir(guest_path("f"), 0700));
	if (mount("guest", guest_path("f"), "binfmt_misc", MS_NOSUID, NULL))
		guest_skip("no binfmt_misc for user namespaces (Linux 6.7)");
	text(guest_path("f/register"), ":guest_magic:M:2:GUE\\x00:\\xff\\xff\\xff\\x00:/bin/true:P");
	text(guest_path("f/register"), ":guest_off:E::guest::/bin/true:");
	text(guest_path("f/guest_off"), "0");
	text(guest_path("f/register"), ":guest_open:M::OPEN::/bin/true:F");
	fd = MUST(open(guest_path("program"), O_WRONLY | O_CREAT, 0755));
	MUST(write(fd, "..GUESTS", 8));
	close(fd);
	fd = MUST(open(guest_path("other"), O_WRONLY | O_CREAT, 0755));
	MUST(write(fd, "OPEN...", 8));
	close(fd);
	SAME("result of the program", runs(guest_path("program")), 0);
	SAME("result of the other", runs(guest_path("other")), 0);
	for (i = 0; i < 3; i++)
		snprintf(was[i], sizeof(was[i]), "%s", format(names[i]));

	guest_ready_wait();

	if (SPOIL("format"))
		text(guest_path("f/guest_off"), "1");
	for (i = 0; i < 3; i++)
		CHECK(!strcmp(was[i], format(names[i])), "%s is \"%s\", and was \"%s\"", names[i], format(names[i]), was[i]);
	if (SPOIL("magic"))
		text(guest_path("f/status"), "0");
	SAME("result of the program", runs(guest_path("program")), 0);
	if (SPOIL("open"))
		MUST(unlink(guest_path("other")));
	SAME("result of the other", runs(guest_path("other")), 0);
	guest_pass();
}
