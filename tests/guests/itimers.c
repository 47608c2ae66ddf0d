/* The three interval timers: remaining time, interval, and one of them really firing afterwards. */
#include "guest.h"

static volatile int fired;

static void on_alarm(UNUSED int sig)
{
	fired++;
}

static double secs(struct timeval t)
{
	return t.tv_sec + t.tv_usec / 1e6;
}

int main(int argc, char **argv)
{
	struct itimerval real = { { 3000, 250000 }, { 1000, 0 } }, virt = { { 7, 0 }, { 500, 500 } }, prof = { { 0, 0 }, { 600, 0 } };
	struct itimerval now;

	guest_init(argc, argv);
	signal(SIGALRM, on_alarm);
	MUST(setitimer(ITIMER_REAL, &real, NULL));
	MUST(setitimer(ITIMER_VIRTUAL, &virt, NULL));
	MUST(setitimer(ITIMER_PROF, &prof, NULL));
	guest_ready_wait();
	if (SPOIL("real"))
		setitimer(ITIMER_REAL, &virt, NULL);
	if (SPOIL("interval"))
		setitimer(ITIMER_VIRTUAL, &(struct itimerval){ { 8, 0 }, { 500, 500 } }, NULL);
	if (SPOIL("prof"))
		setitimer(ITIMER_PROF, &(struct itimerval){ { 0, 0 }, { 0, 0 } }, NULL);
	MUST(getitimer(ITIMER_REAL, &now));
	SAME("interval of ITIMER_REAL", now.it_interval.tv_sec * 1000000 + now.it_interval.tv_usec, 3000250000);
	/* Time that passed while it was frozen may or may not count. */
	CHECK(secs(now.it_value) > 900 && secs(now.it_value) <= 1000, "ITIMER_REAL has %f s left", secs(now.it_value));
	MUST(getitimer(ITIMER_VIRTUAL, &now));
	SAME("interval of ITIMER_VIRTUAL", now.it_interval.tv_sec, 7);
	CHECK(secs(now.it_value) > 499 && secs(now.it_value) < 500.1, "ITIMER_VIRTUAL has %f s left", secs(now.it_value));
	MUST(getitimer(ITIMER_PROF, &now));
	SAME("interval of ITIMER_PROF", now.it_interval.tv_sec, 0);
	CHECK(secs(now.it_value) > 599 && secs(now.it_value) < 600.1, "ITIMER_PROF has %f s left", secs(now.it_value));
	MUST(setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 0 }, { 0, 1000 } }, NULL));
	for (int i = 0; i < 2000 && !fired; i++)
		usleep(1000);
	SAME("alarm", fired, 1);
	guest_pass();
}
