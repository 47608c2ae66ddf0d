/* timerfd: armed, periodic, disarmed, expired with ticks to read, absolute; clocks and flags. */
#include "guest.h"
#include <sys/timerfd.h>

int main(int argc, char **argv)
{
	struct itimerspec spec = { { 0, 0 }, { 900, 0 } }, now;
	int far, periodic, off, expired, absolute;
	char path[64];
	uint64_t ticks = 0;

	guest_init(argc, argv);
	far = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	MUST(timerfd_settime(far, 0, &spec, NULL));
	periodic = MUST(timerfd_create(CLOCK_REALTIME, 0));
	spec.it_interval = (struct timespec){ 0, 5000000 };
	spec.it_value = (struct timespec){ 0, 5000000 };
	MUST(timerfd_settime(periodic, 0, &spec, NULL));
	off = MUST(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC));
	expired = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	spec.it_interval = (struct timespec){ 0, 0 };
	spec.it_value = (struct timespec){ 0, 1 };
	MUST(timerfd_settime(expired, 0, &spec, NULL));
	absolute = MUST(timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK));
	clock_gettime(CLOCK_REALTIME, &spec.it_value);
	spec.it_value.tv_sec += 700;
	MUST(timerfd_settime(absolute, TFD_TIMER_ABSTIME, &spec, NULL));
	usleep(2000);
	guest_ready_wait();
	if (SPOIL("disarmed"))
		timerfd_settime(far, 0, &(struct itimerspec){ 0 }, NULL);
	if (SPOIL("periodic"))
		timerfd_settime(periodic, 0, &(struct itimerspec){ { 0, 0 }, { 0, 5000000 } }, NULL);
	if (SPOIL("armed"))
		timerfd_settime(off, 0, &(struct itimerspec){ { 0, 0 }, { 100, 0 } }, NULL);
	if (SPOIL("ticks"))
		MUST(read(expired, &ticks, 8));
	if (SPOIL("clock"))
		dup2(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), off);
	MUST(timerfd_gettime(far, &now));
	CHECK(now.it_value.tv_sec > 800 && now.it_value.tv_sec <= 900, "the far one has %ld s left", (long)now.it_value.tv_sec);
	MUST(timerfd_gettime(absolute, &now));
	CHECK(now.it_value.tv_sec > 600 && now.it_value.tv_sec <= 700, "the absolute one has %ld s left", (long)now.it_value.tv_sec);
	MUST(timerfd_gettime(off, &now));
	SAME("seconds left of the disarmed one", now.it_value.tv_sec, 0);
	MUST(timerfd_gettime(periodic, &now));
	SAME("interval", now.it_interval.tv_nsec, 5000000);
	SAME("read of the expired one", read(expired, &ticks, 8), 8);
	SAME("ticks of the expired one", ticks, 1);
	for (int i = 0; i < 3; i++) {
		struct pollfd p = { periodic, POLLIN, 0 };

		SAME("poll of the periodic one", poll(&p, 1, 2000), 1);
		SAME("read of the periodic one", read(periodic, &ticks, 8), 8);
		CHECK(ticks >= 1, "no ticks");
	}
	SAME("flags", fcntl(far, F_GETFL), O_RDWR | O_NONBLOCK);
	SAME("close-on-exec", fcntl(off, F_GETFD), FD_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", off);
	SAME("clock", guest_field(guest_slurp(path), "clockid:", 10), CLOCK_BOOTTIME);
	guest_pass();
}
