/* What guests with mounts share: making them, telling them, and reading what is on them. */
#ifndef MOUNTS_H
#define MOUNTS_H
#include "guest.h"
#include <sys/mount.h>

static UNUSED void put(const char *path, const char *text)
{
	int fd = MUST(open(path, O_WRONLY | O_CREAT | O_EXCL, 0640));

	SAME("bytes written", write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static UNUSED void tmpfs(const char *at, unsigned long flags, const char *options)
{
	mkdir(at, 0700);
	MUST(mount("guest", at, "tmpfs", flags, options));
}

static UNUSED void change(const char *at, unsigned long flags)
{
	MUST(mount(NULL, at, NULL, flags, NULL));
}

static int mounts_compare(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* All mounts below the work folder, one line each, without the numbers that change. */
static UNUSED char *mounts(void)
{
	static char text[1 << 16];
	char *lines[256], *line, *save, *out = malloc(sizeof(text));
	unsigned n = 0, i;
	size_t len = 0;
	ssize_t got;
	int fd = MUST(open("/proc/self/mountinfo", O_RDONLY));

	while ((got = MUST(read(fd, text + len, sizeof(text) - 1 - len))) > 0)
		len += got;
	text[len] = 0;
	close(fd);
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char root[512], at[512], flags[256], rest[1024], *more, *s = malloc(4096);

		if (sscanf(line, "%*d %*d %*s %511s %511s %255s", root, at, flags) != 3 || !(more = strstr(line, " - ")))
			guest_fail("mountinfo: %s", line);
		/* a disk's folder may be another part of it on the other side */
		if (strncmp(at, guest_dir, strlen(guest_dir)) || !strcmp(at, guest_dir) || n == 256)
			continue;
		snprintf(rest, sizeof(rest), "%s", more);
		sprintf(s, "%s %s %s%s%s%s%s\n", at, root, flags, strstr(line, " shared:") ? " shared" : "",
			strstr(line, " master:") ? " slave" : "", strstr(line, " unbindable") ? " unbindable" : "", rest);
		lines[n++] = s;
	}
	qsort(lines, n, sizeof(*lines), mounts_compare);
	for (i = 0, *out = 0; i < n; i++)
		strcat(out, lines[i]);
	return out;
}

static UNUSED dev_t device(const char *path)
{
	struct stat st;

	MUST(stat(path, &st));
	return st.st_dev;
}

static UNUSED void reads(const char *what, int fd, const char *want)
{
	char buf[64] = "";

	MUST(read(fd, buf, sizeof(buf) - 1));
	CHECK(!strcmp(buf, want), "%s reads \"%s\", not \"%s\"", what, buf, want);
}

#endif
