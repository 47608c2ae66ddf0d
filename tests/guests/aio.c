/* A Linux AIO ring: the context id is its address, completed events wait in it, and it still takes requests. */
#include "guest.h"
#include <linux/aio_abi.h>

int main(int argc, char **argv)
{
	aio_context_t ctx = 0;
	struct iocb cb = { 0 }, *list[1] = { &cb };
	struct io_event ev[4];
	char buf[64] = "written by aio";
	struct timespec soon = { 3, 0 };
	int fd;

	guest_init(argc, argv);
	if (syscall(SYS_io_setup, 50, &ctx))
		guest_skip("kernel without AIO");
	fd = MUST(open(guest_path("file"), O_RDWR | O_CREAT, 0600));
	cb.aio_fildes = fd;
	cb.aio_lio_opcode = IOCB_CMD_PWRITE;
	cb.aio_buf = (unsigned long)buf;
	cb.aio_nbytes = 14;
	/* Some through, so that head and tail of the ring are not zero; two stay in it. */
	for (int i = 0; i < 7; i++) {
		cb.aio_data = 100 + i;
		SAME("submitted", syscall(SYS_io_submit, ctx, 1, list), 1);
		if (i < 5)
			SAME("got", syscall(SYS_io_getevents, ctx, 1, 1, ev, &soon), 1);
	}
	guest_ready_wait();
	if (SPOIL("events"))
		SAME("got", syscall(SYS_io_getevents, ctx, 1, 1, ev, &soon), 1);
	if (SPOIL("context"))
		syscall(SYS_io_destroy, ctx);
	SAME("waiting events", syscall(SYS_io_getevents, ctx, 2, 4, ev, &soon), 2);
	SAME("data of the first", ev[0].data, 105);
	SAME("result of the first", ev[0].res, 14);
	SAME("data of the second", ev[1].data, 106);
	cb.aio_lio_opcode = IOCB_CMD_PREAD;
	memset(buf, 0, sizeof(buf));
	for (int i = 0; i < 200; i++) {
		cb.aio_data = i;
		SAME("submitted", syscall(SYS_io_submit, ctx, 1, list), 1);
		SAME("got", syscall(SYS_io_getevents, ctx, 1, 1, ev, &soon), 1);
		SAME("data", ev[0].data, i);
	}
	CHECK(!strcmp(buf, "written by aio"), "read %s", buf);
	MUST(syscall(SYS_io_destroy, ctx));
	guest_pass();
}
