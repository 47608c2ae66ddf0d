/*
 * Overlays inside of the tree: of a tmpfs and a folder on a disk, with files open in both, copied up, and deleted; one on top of
 * another; and a container in the container, whose root is an overlay of folders only the outer one sees.
 */
#include "mounts.h"

/* The options for layers with these names; in a user namespace overlayfs may not use the attributes it would. */
static void overlay(const char *at, const char *lower, const char *upper, const char *work)
{
	char o[2048];
	int n = snprintf(o, sizeof(o), "lowerdir=%s", lower);

	if (upper)
		n += snprintf(o + n, sizeof(o) - n, ",upperdir=%s,workdir=%s", upper, work);
	mkdir(at, 0700);
	if (!strchr(guest_slurp("/proc/self/uid_map"), '4'))
		snprintf(o + n, sizeof(o) - n, ",userxattr");
	MUST(mount("guest", at, "overlay", MS_NODEV, o));
}

/* Reads a file of a folder. */
static void holds(int dir, const char *name, const char *want)
{
	int fd = openat(dir, name, O_RDONLY);

	CHECK(fd >= 0, "%s: %s", name, strerror(errno));
	reads(name, fd, want);
	close(fd);
}

/* Its root is an overlay, whose layers are not among its mounts. */
static void inner(void *arg)
{
	char at[PATH_MAX], lower[PATH_MAX];
	int fd, top;

	(void)arg;
	MUST(unshare(CLONE_NEWNS));
	change("/", MS_REC | MS_PRIVATE);
	snprintf(lower, sizeof(lower), "%s:%s", guest_path("o/top"), guest_path("disk"));
	overlay(guest_path("root"), lower, guest_path("o/up3"), guest_path("o/work3"));
	/* the harness' folder, at its place in the new root */
	snprintf(at, sizeof(at), "%s%s", guest_path("root"), guest_dir);
	for (char *p = at + strlen(guest_path("root")) + 1; (p = strchr(p, '/')); *p++ = '/') {
		*p = 0;
		mkdir(at, 0755);
	}
	mkdir(at, 0755);
	MUST(mount(guest_dir, at, NULL, MS_BIND, NULL));
	MUST(chdir(guest_path("root")));
	MUST(syscall(SYS_pivot_root, ".", "."));
	MUST(umount2(".", MNT_DETACH));
	MUST(chdir("/"));
	put("/inside", "inside\n");
	MUST(unlink("/down"));
	fd = MUST(open("/inside", O_RDWR));
	MUST(lseek(fd, 2, SEEK_SET));

	guest_child_ready_wait();

	top = MUST(open("/", O_PATH | O_DIRECTORY));
	if (SPOIL("inner"))
		MUST(rename("/over", "/other"));
	holds(top, "over", "over\n");
	holds(top, "inside", "inside\n");
	CHECK(access("/down", F_OK) < 0, "what was deleted in the inner root is back");
	reads("the file of the inner root", fd, "side\n");
	put("/late", "late\n");
}

int main(int argc, char **argv)
{
	const char *folders[] = { "o/low", "o/up", "o/work", "o/up2", "o/work2", "o/top", "o/up3", "o/work3" };
	char *before, *after, lower[PATH_MAX];
	int low, up, gone, fd, m;
	struct stat st;
	pid_t child;

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWNS);
	change("/", MS_REC | MS_PRIVATE);
	tmpfs(guest_path("o"), 0, "size=1m");
	for (unsigned i = 0; i < sizeof(folders) / sizeof(*folders); i++)
		MUST(mkdir(guest_path(folders[i]), 0755));
	MUST(mkdir(guest_path("disk"), 0755));
	MUST(mkdir(guest_path("root"), 0755));
	put(guest_path("disk/down"), "down\n");
	put(guest_path("disk/both"), "down\n");
	put(guest_path("o/low/both"), "low\n");
	put(guest_path("o/low/hidden"), "low\n");
	put(guest_path("o/low/old"), "low\n");
	put(guest_path("o/top/over"), "over\n");
	snprintf(lower, sizeof(lower), "%s:%s", guest_path("o/low"), guest_path("disk"));
	overlay(guest_path("m"), lower, guest_path("o/up"), guest_path("o/work"));
	low = MUST(open(guest_path("m/old"), O_RDONLY));
	MUST(lseek(low, 1, SEEK_SET));
	MUST(unlink(guest_path("m/hidden")));
	put(guest_path("m/new"), "new\n");
	up = MUST(open(guest_path("m/new"), O_RDWR));
	MUST(lseek(up, 2, SEEK_SET));
	fd = MUST(open(guest_path("m/down"), O_WRONLY | O_APPEND));
	MUST(write(fd, "more\n", 5));
	close(fd);
	put(guest_path("m/gone"), "gone\n");
	gone = MUST(open(guest_path("m/gone"), O_RDWR));
	MUST(unlink(guest_path("m/gone")));
	/* read-only, with a layer that is an overlay */
	snprintf(lower, sizeof(lower), "%s:%s", guest_path("o/top"), guest_path("m"));
	overlay(guest_path("two"), lower, NULL, NULL);
	before = mounts();
	child = guest_child(inner, NULL);

	guest_ready_wait();

	if (SPOIL("flags"))
		change(guest_path("m"), MS_REMOUNT | MS_BIND | MS_NOSUID);
	after = mounts();
	CHECK(!strcmp(before, after), "mounts were\n%sand are\n%s", before, after);
	m = MUST(open(guest_path("m"), O_PATH | O_DIRECTORY));
	if (SPOIL("order"))
		MUST(rename(guest_path("m/old"), guest_path("m/both")));
	holds(m, "both", "low\n");
	holds(m, "down", "down\nmore\n");
	if (SPOIL("hidden"))
		put(guest_path("m/hidden"), "back\n");
	CHECK(access(guest_path("m/hidden"), F_OK) < 0, "what was deleted is back");
	holds(MUST(open(guest_path("disk"), O_PATH)), "down", "down\n");
	if (SPOIL("low"))
		lseek(low, 0, SEEK_SET);
	reads("the file below", low, "ow\n");
	if (SPOIL("up"))
		lseek(up, 0, SEEK_SET);
	reads("the file above", up, "w\n");
	MUST(fstat(gone, &st));
	SAME("links of the deleted file", st.st_nlink, 0);
	if (SPOIL("gone"))
		MUST(ftruncate(gone, 2));
	reads("the deleted file", gone, "gone\n");
	MUST(pwrite(up, "!", 1, 0));
	holds(MUST(open(guest_path("o/up"), O_PATH)), "new", "!ew\n");
	if (SPOIL("two"))
		MUST(umount(guest_path("two")));
	fd = MUST(open(guest_path("two"), O_PATH | O_DIRECTORY));
	holds(fd, "over", "over\n");
	holds(fd, "old", "low\n");
	CHECK(open(guest_path("two/x"), O_WRONLY | O_CREAT, 0600) < 0 && errno == EROFS, "one without upper layer can be written");
	guest_child_finish(child);
	if (SPOIL("late"))
		MUST(unlink(guest_path("o/up3/late")));
	holds(MUST(open(guest_path("o/up3"), O_PATH)), "late", "late\n");
	guest_pass();
}
