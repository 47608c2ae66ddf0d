/* Names are bytes: files, folders, targets of links and memory files whose names are no UTF-8. */
#include "guest.h"
#include <sys/inotify.h>
#include <sys/mman.h>

/* "cafe" with the accent as Latin-1 has it, and a byte that no encoding has */
#define CAFE "caf\xe9\xff"

static void link_is(int fd, const char *want)
{
	char path[64], to[512];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = MUST(readlink(path, to, sizeof(to) - 1));
	to[n] = 0;
	CHECK(strstr(to, want), "fd %d is another file", fd);
}

int main(int argc, char **argv)
{
	char dir[512], file[600], gone[600], link[600], text[8] = "", cwd[512];
	int fd, deleted, at, mem, note;
	char *map;

	guest_init(argc, argv);
	snprintf(dir, sizeof(dir), "%s", guest_path(CAFE));
	snprintf(file, sizeof(file), "%s/" CAFE, dir);
	snprintf(gone, sizeof(gone), "%s/gone " CAFE, dir);
	snprintf(link, sizeof(link), "%s/link", dir);
	MUST(mkdir(dir, 0700));
	fd = MUST(open(file, O_RDWR | O_CREAT | O_EXCL, 0600));
	SAME("written", write(fd, "accent", 6), 6);
	map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED, "mmap");
	deleted = MUST(open(gone, O_RDWR | O_CREAT | O_EXCL, 0600));
	SAME("written", write(deleted, "away", 4), 4);
	MUST(unlink(gone));
	MUST(symlink(CAFE, link));
	at = MUST(open(link, O_PATH | O_NOFOLLOW));
	mem = MUST(memfd_create(CAFE, 0));
	note = MUST(inotify_init1(IN_NONBLOCK));
	MUST(inotify_add_watch(note, dir, IN_CREATE));
	MUST(chdir(dir));
	guest_ready_wait();

	if (SPOIL("another file"))
		MUST(dup2(MUST(open("/dev/null", O_RDWR)), fd));
	if (SPOIL("folder"))
		MUST(chdir("/"));
	if (SPOIL("memory file"))
		MUST(dup2(MUST(memfd_create("cafe", 0)), mem));
	if (SPOIL("watch"))
		MUST(dup2(MUST(inotify_init1(IN_NONBLOCK)), note));
	link_is(fd, "/" CAFE);
	link_is(mem, CAFE);
	SAME("read", pread(fd, text, 6, 0), 6);
	CHECK(!strcmp(text, "accent") && !memcmp(map, "accent", 6), "another content");
	SAME("read of the deleted one", pread(deleted, text, 4, 0), 4);
	CHECK(!memcmp(text, "away", 4), "another content of the deleted one");
	SAME("target", readlinkat(at, "", text, sizeof(text)), 5);
	CHECK(!memcmp(text, CAFE, 5), "another target");
	CHECK(getcwd(cwd, sizeof(cwd)) && !strcmp(cwd, dir), "another working directory");
	MUST(mkdir("child", 0700));
	MUST(rmdir("child"));
	CHECK(read(note, cwd, sizeof(cwd)) > 0, "nobody watched");
	guest_pass();
}
