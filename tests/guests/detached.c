/*
 * Files on mounts that were detached (umount -l) while they are open: of a tmpfs that nothing else shows, one of them mapped, and one
 * open twice; and of a folder that is bound, where the file can be found without that mount.
 */
#include "mounts.h"

static const char *leads(int fd)
{
	static char to[4][PATH_MAX];
	static unsigned n;
	char *p = to[n++ % 4], path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	memset(p, 0, PATH_MAX);
	MUST(readlink(path, p, PATH_MAX - 1));
	return p;
}

int main(int argc, char **argv)
{
	struct stat a, b, was;
	char text[64] = "", first[PATH_MAX];
	int one, again, deep, log;
	char *map;

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWNS);
	change("/", MS_REC | MS_PRIVATE);
	tmpfs(guest_path("t"), 0, "size=1m");
	MUST(mkdir(guest_path("t/sub"), 0700));
	put(guest_path("t/one"), "first\n");
	put(guest_path("t/sub/deep"), "deep inside\n");
	one = MUST(open(guest_path("t/one"), O_RDWR));
	again = MUST(open(guest_path("t/one"), O_RDONLY));
	deep = MUST(open(guest_path("t/sub/deep"), O_RDWR | O_APPEND));
	MUST(lseek(one, 2, SEEK_SET));
	map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, one, 0);
	CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
	MUST(umount2(guest_path("t"), MNT_DETACH));
	/* a part of a file system that stays */
	tmpfs(guest_path("stays"), 0, "size=1m");
	MUST(mkdir(guest_path("stays/logs"), 0700));
	MUST(mkdir(guest_path("bound"), 0700));
	MUST(mount(guest_path("stays/logs"), guest_path("bound"), NULL, MS_BIND, NULL));
	log = MUST(open(guest_path("bound/log"), O_WRONLY | O_CREAT | O_APPEND, 0600));
	MUST(write(log, "before\n", 7));
	MUST(umount2(guest_path("bound"), MNT_DETACH));
	MUST(fstat(one, &was));
	strcpy(first, leads(one));

	guest_ready_wait();

	if (SPOIL("position"))
		lseek(one, 0, SEEK_SET);
	reads("the first", one, "rst\n");
	if (SPOIL("deep"))
		MUST(ftruncate(deep, 4));
	MUST(pread(deep, text, sizeof(text) - 1, 0));
	CHECK(!strcmp(text, "deep inside\n"), "the second reads \"%s\"", text);
	MUST(fstat(one, &a));
	MUST(fstat(again, &b));
	SAME("inode of the other open file", b.st_ino, a.st_ino);
	SAME("mode", a.st_mode, was.st_mode);
	SAME("links", a.st_nlink, 1);
	MUST(fstat(deep, &b));
	SAME("file system of the second", b.st_dev, a.st_dev);
	if (SPOIL("name"))
		one = log;
	CHECK(!strcmp(first, leads(one)), "it is %s, and was %s", leads(one), first);
	/* one object with its mapping */
	if (SPOIL("mapping"))
		map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	map[0] = 'F';
	reads("the other open file", again, "First\n");
	MUST(write(log, "after\n", 6));
	if (SPOIL("log"))
		MUST(truncate(guest_path("stays/logs/log"), 3));
	reads("the log", MUST(open(guest_path("stays/logs/log"), O_RDONLY)), "before\nafter\n");
	guest_pass();
}
