/*
 * POSIX timers: several clocks, ids with gaps, armed and not, intervals, notification kinds, overruns of a blocked
 * signal, a timer that tells one thread.
 */
#include "guest.h"

#ifndef SIGEV_THREAD_ID
#define SIGEV_THREAD_ID 4
#endif
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

struct row {
	clockid_t clock;
	int notify, sig;
	struct itimerspec spec;
	int id;
};

static struct row rows[] = {
	{ CLOCK_REALTIME, SIGEV_SIGNAL, 40, { { 0, 0 }, { 900, 0 } }, -1 },
	{ CLOCK_MONOTONIC, SIGEV_SIGNAL, 41, { { 17, 5000 }, { 800, 0 } }, -1 },
	{ CLOCK_BOOTTIME, SIGEV_SIGNAL, 42, { { 0, 0 }, { 0, 0 } }, -1 },
	{ CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, 43, { { 3, 0 }, { 700, 0 } }, -1 },
	{ CLOCK_MONOTONIC, SIGEV_NONE, 0, { { 1, 0 }, { 600, 0 } }, -1 },
	{ CLOCK_MONOTONIC, SIGEV_THREAD_ID, 44, { { 0, 0 }, { 500, 0 } }, -1 },
	{ CLOCK_THREAD_CPUTIME_ID, SIGEV_SIGNAL, 45, { { 0, 0 }, { 400, 0 } }, -1 },
	/* Fires all the time with its signal blocked: overruns. */
	{ CLOCK_MONOTONIC, SIGEV_SIGNAL, 46, { { 0, 2000000 }, { 0, 2000000 } }, -1 },
};
enum { N = sizeof(rows) / sizeof(*rows) };

static int create(struct row *r)
{
	struct sigevent ev = { .sigev_notify = r->notify, .sigev_signo = r->sig };
	int id = -1;

	ev.sigev_value.sival_ptr = r;
	if (r->notify == SIGEV_THREAD_ID)
		ev.sigev_notify_thread_id = getpid();
	MUST(syscall(SYS_timer_create, r->clock, &ev, &id));
	return id;
}

int main(int argc, char **argv)
{
	struct itimerspec now;
	struct timespec soon = { 2, 0 };
	char want[64];
	const char *list;
	siginfo_t si;
	sigset_t set;
	int waste[5], overruns = 0;

	guest_init(argc, argv);
	sigemptyset(&set);
	sigaddset(&set, 46);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < N; i++) {
		/* Ids with gaps: some are made and deleted in between. */
		for (int k = 0; k < i % 3; k++)
			waste[k] = create(&rows[0]);
		rows[i].id = create(&rows[i]);
		for (int k = 0; k < i % 3; k++)
			MUST(syscall(SYS_timer_delete, waste[k]));
		MUST(syscall(SYS_timer_settime, rows[i].id, 0, &rows[i].spec, NULL));
	}
	guest_ready_wait();

	if (SPOIL("deleted"))
		syscall(SYS_timer_delete, rows[3].id);
	if (SPOIL("disarmed"))
		syscall(SYS_timer_settime, rows[0].id, 0, &rows[2].spec, NULL);
	if (SPOIL("armed"))
		syscall(SYS_timer_settime, rows[2].id, 0, &rows[0].spec, NULL);
	if (SPOIL("interval"))
		syscall(SYS_timer_settime, rows[1].id, 0, &rows[0].spec, NULL);
	if (SPOIL("overrun")) {
		syscall(SYS_timer_settime, rows[7].id, 0, &rows[2].spec, NULL);
		while (sigtimedwait(&set, &si, &(struct timespec){ 0, 0 }) > 0)
			;
	}
	if (SPOIL("kind"))
		rows[5].notify = SIGEV_SIGNAL;
	for (int i = 0; i < N - 1; i++) {
		struct row *r = &rows[i];
		double left;

		CHECK(!syscall(SYS_timer_gettime, r->id, &now), "timer %d (row %d) is gone", r->id, i);
		SAME("interval", now.it_interval.tv_sec * 1000000000ll + now.it_interval.tv_nsec,
		     r->spec.it_interval.tv_sec * 1000000000ll + r->spec.it_interval.tv_nsec);
		left = now.it_value.tv_sec + now.it_value.tv_nsec / 1e9;
		if (!r->spec.it_value.tv_sec)
			CHECK(left == 0, "timer of row %d runs", i);
		else
			CHECK(left > r->spec.it_value.tv_sec - 90 && left < r->spec.it_value.tv_sec + 0.1, "timer of row %d has %f s left", i, left);
	}
	/* What is sent to whom, by the kernel's own list. */
	list = guest_slurp("/proc/self/timers");
	for (int i = 0; i < N; i++) {
		struct row *r = &rows[i];
		const char *at, *next;

		snprintf(want, sizeof(want), "ID: %d\n", r->id);
		at = strstr(list, want);
		CHECK(at, "no timer %d in /proc/self/timers", r->id);
		next = strstr(at + 1, "\nID: ");
		snprintf(want, sizeof(want), "signal: %d/%016lx\n", r->sig, (unsigned long)r);
		CHECK(strstr(at, want) && (!next || strstr(at, want) < next), "timer of row %d lost its \"%.40s\"", i, want);
		snprintf(want, sizeof(want), "notify: %s/%s.%d\n", (r->notify & ~SIGEV_THREAD_ID) == SIGEV_NONE ? "none" : "signal",
			 r->notify & SIGEV_THREAD_ID ? "tid" : "pid", getpid());
		CHECK(strstr(at, want) && (!next || strstr(at, want) < next), "timer of row %d lost its \"%.40s\"", i, want);
	}
	/* The busy one: a signal with its value, and overruns counted. */
	usleep(20000);
	CHECK(sigtimedwait(&set, &si, &soon) == 46, "the busy timer does not fire");
	SAME("si_code", si.si_code, SI_TIMER);
	CHECK(si.si_value.sival_ptr == &rows[7], "value of the busy timer changed");
	SAME("si_timerid", si.si_timerid, rows[7].id);
	/* Taking a signal that was queued before the freeze need not count overruns; later ones must. */
	for (int i = 0; i < 3 && overruns <= 0; i++) {
		usleep(20000);
		CHECK(sigtimedwait(&set, &si, &soon) == 46, "the busy timer fires only once");
		overruns = syscall(SYS_timer_getoverrun, rows[7].id);
	}
	CHECK(overruns > 0, "no overrun");
	guest_pass();
}
