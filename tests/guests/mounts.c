/*
 * A tree of mounts in a mount namespace of the guest's own (or of its container): tmpfs with contents, parts of it, mounts that
 * hide others, files open on both, flags, peers and slaves.
 */
#include "mounts.h"
#include <sys/xattr.h>

#define QUIET (MS_NOSUID | MS_NODEV | MS_NOEXEC)

int main(int argc, char **argv)
{
	struct timespec times[2] = { { 5, 6 }, { 1000000007, 123456789 } };
	struct stat st, other;
	char *before, *after, buf[64] = "";
	int low, high, attributes, fd;

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWNS);
	change("/", MS_REC | MS_PRIVATE);

	tmpfs(guest_path("t"), MS_NOSUID | MS_NOATIME, "size=400k,mode=0751");
	put(guest_path("t/text"), "hello\n");
	MUST(link(guest_path("t/text"), guest_path("t/again")));
	MUST(symlink("../nowhere", guest_path("t/link")));
	MUST(mkfifo(guest_path("t/fifo"), 0604));
	fd = MUST(open(guest_path("t/sparse"), O_RDWR | O_CREAT, 0600));
	MUST(ftruncate(fd, 1 << 20));
	MUST(pwrite(fd, "middle", 6, 500000));
	close(fd);
	attributes = !setxattr(guest_path("t/text"), "user.note", "kept", 4, 0);
	MUST(utimensat(AT_FDCWD, guest_path("t/text"), times, 0));
	MUST(mkdir(guest_path("t/sub"), 01730));
	put(guest_path("t/sub/inside"), "part\n");
	/* a part of it, with other flags */
	MUST(mkdir(guest_path("b"), 0700));
	MUST(mount(guest_path("t/sub"), guest_path("b"), NULL, MS_BIND, NULL));
	change(guest_path("b"), MS_REMOUNT | MS_BIND | MS_RDONLY | QUIET | MS_STRICTATIME);
	/* one hides the other */
	tmpfs(guest_path("h"), 0, "size=64k");
	put(guest_path("h/file"), "lower\n");
	low = MUST(open(guest_path("h/file"), O_RDWR));
	MUST(lseek(low, 2, SEEK_SET));
	tmpfs(guest_path("h"), MS_NODEV, "size=32k");
	put(guest_path("h/file"), "upper\n");
	high = MUST(open(guest_path("h/file"), O_RDONLY));
	/* full, then read-only as a whole */
	tmpfs(guest_path("r"), QUIET, "size=32k");
	put(guest_path("r/file"), "read\n");
	change(guest_path("r"), MS_REMOUNT | MS_RDONLY | QUIET);
	/* peers and slaves */
	tmpfs(guest_path("s"), 0, "size=64k");
	MUST(mkdir(guest_path("s/x"), 0700));
	MUST(mkdir(guest_path("s/y"), 0700));
	change(guest_path("s"), MS_SHARED);
	for (fd = 2; fd <= 3; fd++) {
		const char *at = guest_path(fd == 2 ? "s2" : "s3");

		MUST(mkdir(at, 0700));
		MUST(mount(guest_path("s"), at, NULL, MS_BIND, NULL));
	}
	change(guest_path("s3"), MS_SLAVE);
	tmpfs(guest_path("u"), 0, "size=32k");
	change(guest_path("u"), MS_UNBINDABLE);
	before = mounts();

	guest_ready_wait();

	if (SPOIL("flags"))
		change(guest_path("b"), MS_REMOUNT | MS_BIND | MS_RDONLY);
	after = mounts();
	CHECK(!strcmp(before, after), "mounts were\n%sand are\n%s", before, after);
	if (SPOIL("text"))
		MUST(truncate(guest_path("t/text"), 3));
	fd = MUST(open(guest_path("t/text"), O_RDONLY));
	reads("the text", fd, "hello\n");
	MUST(fstat(fd, &st));
	SAME("mode of the text", st.st_mode, S_IFREG | 0640);
	SAME("links of the text", st.st_nlink, 2);
	if (SPOIL("time"))
		st.st_mtim.tv_nsec = 0;
	SAME("time of the text", st.st_mtim.tv_sec, times[1].tv_sec);
	SAME("nanoseconds of the text", st.st_mtim.tv_nsec, times[1].tv_nsec);
	if (SPOIL("attribute"))
		removexattr(guest_path("t/text"), "user.note");
	if (attributes)
		CHECK(getxattr(guest_path("t/text"), "user.note", buf, sizeof(buf)) == 4 && !memcmp(buf, "kept", 4),
		      "the text has lost its attribute");
	memset(buf, 0, sizeof(buf));
	if (SPOIL("link")) {
		MUST(unlink(guest_path("t/link")));
		MUST(symlink("elsewhere", guest_path("t/link")));
	}
	MUST(readlink(guest_path("t/link"), buf, sizeof(buf) - 1));
	CHECK(!strcmp(buf, "../nowhere"), "the link leads to %s", buf);
	if (SPOIL("fifo"))
		MUST(chmod(guest_path("t/fifo"), 0600));
	MUST(lstat(guest_path("t/fifo"), &st));
	SAME("mode of the fifo", st.st_mode, S_IFIFO | 0604);
	fd = MUST(open(guest_path("t/sparse"), O_RDWR));
	if (SPOIL("sparse"))
		MUST(pwrite(fd, &st, sizeof(st), 8192));
	MUST(fstat(fd, &st));
	SAME("size of the sparse file", st.st_size, 1 << 20);
	SAME("blocks of the sparse file", st.st_blocks, PAGE / 512);
	MUST(pread(fd, buf, 6, 500000));
	CHECK(!memcmp(buf, "middle", 6), "the sparse file has lost its middle");
	MUST(stat(guest_path("t"), &st));
	SAME("mode of the tmpfs", st.st_mode, S_IFDIR | 0751);
	if (SPOIL("part"))
		MUST(mount("other", guest_path("b"), "tmpfs", 0, NULL));
	SAME("file system of the part", device(guest_path("b")), device(guest_path("t")));
	MUST(stat(guest_path("b/inside"), &st));
	MUST(stat(guest_path("t/sub/inside"), &other));
	SAME("inode of the part's file", st.st_ino, other.st_ino);
	CHECK(open(guest_path("b/new"), O_WRONLY | O_CREAT, 0600) < 0 && errno == EROFS, "the part can be written");
	CHECK(open(guest_path("r/new"), O_WRONLY | O_CREAT, 0600) < 0 && errno == EROFS, "the read-only tmpfs can be written");

	if (SPOIL("position"))
		lseek(low, 0, SEEK_SET);
	reads("the file below", low, "wer\n");
	reads("the file above", high, "upper\n");
	if (SPOIL("hidden"))
		low = high;
	MUST(umount2(guest_path("h"), MNT_DETACH));
	MUST(fstat(low, &st));
	MUST(stat(guest_path("h/file"), &other));
	SAME("file system of the file below", st.st_dev, other.st_dev);
	SAME("inode of the file below", st.st_ino, other.st_ino);

	if (SPOIL("peer"))
		change(guest_path("s2"), MS_PRIVATE);
	if (SPOIL("slave"))
		change(guest_path("s3"), MS_PRIVATE);
	MUST(mount("late", guest_path("s/x"), "tmpfs", 0, NULL));
	CHECK(device(guest_path("s2/x")) == device(guest_path("s/x")), "what is mounted in a peer is not seen");
	CHECK(device(guest_path("s3/x")) == device(guest_path("s/x")), "what is mounted in the master is not seen");
	if (SPOIL("master"))
		MUST(mount(guest_path("s"), guest_path("s3"), NULL, MS_BIND, NULL));
	MUST(mount("late", guest_path("s3/y"), "tmpfs", 0, NULL));
	CHECK(device(guest_path("s/y")) != device(guest_path("s3/y")), "the master sees what is mounted in a slave");
	guest_pass();
}
