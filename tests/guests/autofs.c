/*
 * Mounts of autofs with their daemon: an indirect one, with something mounted in it, whose folders the daemon makes when somebody
 * looks; and one that nobody serves.
 */
#include "mounts.h"
#include <linux/auto_fs.h>

#define TIMEOUT 77

static int pipes[2];

/* What mountinfo says of the two, without the numbers that change. */
static char *shown(void)
{
	char *text = mounts(), *p;
	const char *keys[] = { "fd=", "pipe_ino=", "pgrp=" };

	for (unsigned i = 0; i < 3; i++)
		for (p = text; (p = strstr(p, keys[i])); p++)
			for (char *c = p + strlen(keys[i]); *c == '-' || (*c >= '0' && *c <= '9'); c++)
				*c = *c == '-' ? '-' : 'N';
	/* as many digits as there are */
	for (char *from = p = text; (*p = *from); from++)
		if (*from != 'N' || p == text || p[-1] != 'N')
			p++;
	return text;
}

static void autofs(const char *at, const char *sort)
{
	char o[128];

	MUST(mkdir(at, 0755));
	MUST(pipe(pipes));
	snprintf(o, sizeof(o), "fd=%d,pgrp=%d,minproto=5,maxproto=5,%s", pipes[1], getpgrp(), sort);
	if (mount("guest", at, "autofs", 0, o))
		guest_skip("no autofs here");
	MUST(close(pipes[1]));
}

static long about(const char *at, unsigned long request, unsigned long value)
{
	int fd = MUST(open(at, O_RDONLY | O_DIRECTORY));
	long r = ioctl(fd, request, value);

	close(fd);
	return r;
}

/* Looks at what is not there yet, from another process group. */
static pid_t looks(const char *path)
{
	pid_t pid = MUST(fork());

	if (!pid) {
		setpgid(0, 0);
		_exit(open(path, O_RDONLY) < 0 ? errno : 0);
	}
	return pid;
}

int main(int argc, char **argv)
{
	struct autofs_v5_packet packet = {};
	unsigned long timeout = TIMEOUT;
	struct pollfd p = { .events = POLLIN };
	char path[300], *before, *after;
	pid_t pid;
	int status, dead;

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWNS);
	change("/", MS_REC | MS_PRIVATE);
	autofs(guest_path("dead"), "direct");
	MUST(about(guest_path("dead"), AUTOFS_IOC_CATATONIC, 0));
	dead = pipes[0];
	autofs(guest_path("m"), "indirect");
	MUST(about(guest_path("m"), AUTOFS_IOC_SETTIMEOUT, (unsigned long)&timeout));
	tmpfs(guest_path("m/old"), 0, "size=64k");
	put(guest_path("m/old/text"), "old\n");
	close(dead);
	before = strdup(shown());

	guest_ready_wait();

	timeout = 5;
	if (SPOIL("timeout"))
		MUST(about(guest_path("m"), AUTOFS_IOC_SETTIMEOUT, (unsigned long)&timeout));
	timeout = TIMEOUT;
	/* gives what was set before */
	MUST(about(guest_path("m"), AUTOFS_IOC_SETTIMEOUT, (unsigned long)&timeout));
	SAME("time to expire", timeout, TIMEOUT);
	if (SPOIL("shown"))
		change(guest_path("m"), MS_REMOUNT | MS_BIND | MS_NOSUID);
	after = shown();
	CHECK(!strcmp(before, after), "mounts were\n%sand are\n%s", before, after);
	reads("the file in what was mounted before", MUST(open(guest_path("m/old/text"), O_RDONLY)), "old\n");
	pid = looks(guest_path("dead/x"));
	MUST(waitpid(pid, &status, 0));
	SAME("what one who looks at the other gets", WEXITSTATUS(status), ENOENT);
	if (SPOIL("daemon"))
		MUST(about(guest_path("m"), AUTOFS_IOC_CATATONIC, 0));
	pid = looks(guest_path("m/key/text"));
	p.fd = pipes[0];
	CHECK(poll(&p, 1, 10000) == 1 && p.revents == POLLIN, "the daemon is not asked");
	SAME("size of the question", read(pipes[0], &packet, sizeof(packet)), sizeof(packet));
	SAME("sort of the question", packet.hdr.type, autofs_ptype_missing_indirect);
	SAME("who asks", packet.pid, pid);
	snprintf(path, sizeof(path), "m/%s", packet.name);
	CHECK(!strcmp(path, "m/key"), "it is asked for %s", path);
	tmpfs(guest_path(path), 0, "size=64k");
	put(guest_path("m/key/text"), "new\n");
	MUST(about(guest_path("m"), AUTOFS_IOC_READY, packet.wait_queue_token));
	MUST(waitpid(pid, &status, 0));
	SAME("what one who looks gets", WEXITSTATUS(status), 0);
	guest_pass();
}
