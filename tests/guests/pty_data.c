/* What is queued in a terminal pair: input not yet read by the slave (raw, and whole lines), output not yet read. */
#include "guest.h"
#include <termios.h>

static int open_pair(int *master, int raw)
{
	struct termios t;
	char name[64];
	int slave;

	*master = MUST(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK));
	MUST(unlockpt(*master));
	CHECK(!ptsname_r(*master, name, sizeof(name)), "no name");
	slave = MUST(open(name, O_RDWR | O_NOCTTY | O_NONBLOCK));
	MUST(tcgetattr(slave, &t));
	if (raw)
		cfmakeraw(&t);
	t.c_lflag &= ~ECHO;
	MUST(tcsetattr(slave, TCSANOW, &t));
	return slave;
}

static void expect(const char *what, int fd, const char *text)
{
	char buf[64] = "";
	size_t n = 0;

	/* The terminal's own worker moves the bytes: give it a moment. */
	for (int i = 0; i < 300 && n < strlen(text); i++, usleep(1000)) {
		int got = read(fd, buf + n, sizeof(buf) - 1 - n);

		n += got > 0 ? got : 0;
	}
	CHECK(!strcmp(buf, text), "%s: \"%s\", not \"%s\"", what, buf, text);
}

int main(int argc, char **argv)
{
	int raw_master, raw, line_master, line;
	char waste[64];

	guest_init(argc, argv);
	raw = open_pair(&raw_master, 1);
	line = open_pair(&line_master, 0);
	SAME("written", write(raw_master, "to slave", 8), 8);
	SAME("written", write(raw, "to master", 9), 9);
	SAME("written", write(line_master, "one line\n", 9), 9);
	usleep(5000);
	guest_ready_wait();
	if (SPOIL("input"))
		MUST(read(raw, waste, 60));
	if (SPOIL("output"))
		MUST(read(raw_master, waste, 60));
	if (SPOIL("line"))
		MUST(read(line, waste, 60));
	expect("output", raw_master, "to master");
	expect("input", raw, "to slave");
	expect("line", line, "one line\n");
	guest_pass();
}
