/* Pipes in packet mode (O_DIRECT): one read gives one packet. */
#include "guest.h"

int main(int argc, char **argv)
{
	int packets[2];
	char back[100];

	guest_init(argc, argv);
	MUST(pipe2(packets, O_DIRECT));
	SAME("written", write(packets[1], "one", 3), 3);
	SAME("written", write(packets[1], "second", 6), 6);
	guest_ready_wait();
	if (SPOIL("packet"))
		MUST(read(packets[0], back, 100));
	if (SPOIL("mode"))
		fcntl(packets[1], F_SETFL, 0);
	SAME("flags", fcntl(packets[1], F_GETFL), O_WRONLY | O_DIRECT);
	SAME("first packet", read(packets[0], back, 100), 3);
	SAME("second packet", read(packets[0], back, 100), 6);
	guest_pass();
}
