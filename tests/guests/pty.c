/* A terminal pair of the tree: queued data both ways, settings, window size, packet mode, a lock, exclusive use. */
#include "guest.h"
#include <termios.h>

int main(int argc, char **argv)
{
	struct winsize ws = { 33, 77, 1, 2 }, ws2;
	struct termios t, t2;
	char name[64], buf[64] = "";
	int master, slave, n;

	guest_init(argc, argv);
	master = MUST(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK));
	MUST(unlockpt(master));
	CHECK(!ptsname_r(master, name, sizeof(name)), "no name");
	slave = MUST(open(name, O_RDWR | O_NOCTTY | O_NONBLOCK));
	MUST(tcgetattr(slave, &t));
	cfmakeraw(&t);
	t.c_lflag |= ISIG;
	t.c_cc[VINTR] = 7;
	t.c_cc[VMIN] = 1;
	MUST(tcsetattr(slave, TCSANOW, &t));
	MUST(tcgetattr(slave, &t));
	MUST(ioctl(master, TIOCSWINSZ, &ws));
	SAME("written", write(master, "to slave", 8), 8);
	SAME("written", write(slave, "to master", 9), 9);
	guest_ready_wait();
	if (SPOIL("termios")) {
		t2 = t;
		t2.c_cc[VINTR] = 3;
		tcsetattr(slave, TCSANOW, &t2);
	}
	if (SPOIL("winsize"))
		ioctl(slave, TIOCSWINSZ, &(struct winsize){ 24, 80, 0, 0 });
	if (SPOIL("pair"))
		dup2(open("/dev/null", O_RDWR), slave);
	CHECK(!ioctl(slave, TIOCGWINSZ, &ws2), "the slave is no terminal");
	CHECK(!memcmp(&ws, &ws2, sizeof(ws)), "window is %dx%d", ws2.ws_row, ws2.ws_col);
	MUST(tcgetattr(slave, &t2));
	SAME("input flags", t2.c_iflag, t.c_iflag);
	SAME("output flags", t2.c_oflag, t.c_oflag);
	SAME("control flags", t2.c_cflag, t.c_cflag);
	SAME("local flags", t2.c_lflag, t.c_lflag);
	CHECK(!memcmp(t2.c_cc, t.c_cc, sizeof(t.c_cc)), "control characters changed");
	CHECK(!ptsname_r(master, buf, sizeof(buf)) && !strcmp(buf, name), "the master is of %s", buf);
	SAME("flags", fcntl(master, F_GETFL) & ~0100000, O_RDWR | O_NONBLOCK);
	/* Data that is written now arrives; what was queued is the affair of pty_data. */
	while (read(slave, buf, sizeof(buf)) > 0 || read(master, buf, sizeof(buf)) > 0)
		;
	SAME("written", write(master, "more", 4), 4);
	n = 0;
	for (int i = 0; i < 1000 && n < 4; i++, usleep(1000)) {
		int got = read(slave, buf + n, sizeof(buf) - n);

		n += got > 0 ? got : 0;
	}
	SAME("read by the slave", n, 4);
	CHECK(!memcmp(buf, "more", 4), "read %.4s", buf);
	guest_pass();
}
