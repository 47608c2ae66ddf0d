/* Pending signals, shared and private, with their siginfo, in the order the kernel would deliver them. */
#include "guest.h"

static pthread_barrier_t built;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static volatile pid_t thread_tid;

/* The raw call: glibc's wrapper turns SI_TKILL into SI_USER. */
static int take(const sigset_t *set, siginfo_t *si)
{
	struct timespec none = { 0, 0 };

	return syscall(SYS_rt_sigtimedwait, set, si, &none, 8);
}

/* Takes the next pending signal and compares it with what was sent. */
static void expect(const char *who, int sig, int code, int value)
{
	siginfo_t si;
	sigset_t all;

	sigfillset(&all);
	sigdelset(&all, SIGTERM);
	if (sig == -1) {
		CHECK(take(&all, &si) == -1, "%s: one signal too many: %d", who, si.si_signo);
		return;
	}
	CHECK(take(&all, &si) == sig, "%s: signal %d is not next (%d is)", who, sig, si.si_signo);
	CHECK(si.si_code == code, "%s: si_code of signal %d is %d, not %d", who, sig, si.si_code, code);
	if (code == SI_QUEUE)
		CHECK(si.si_value.sival_int == value, "%s: value of signal %d is %d, not %d", who, sig, si.si_value.sival_int, value);
	SAME("si_pid", si.si_pid, getpid());
	SAME("si_uid", si.si_uid, getuid());
}

static void queue(int sig, int value)
{
	MUST(sigqueue(getpid(), sig, (union sigval){ .sival_int = value }));
}

static void queue_to(pid_t tid, int sig, int value)
{
	siginfo_t si = { .si_signo = sig, .si_code = SI_QUEUE };

	si.si_pid = getpid();
	si.si_uid = getuid();
	si.si_value.sival_int = value;
	MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, sig, &si));
}

static void *thread(UNUSED void *arg)
{
	thread_tid = syscall(SYS_gettid);
	pthread_barrier_wait(&built);
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	/* Private ones first, lowest number first, queued ones in the order of sending. The shared are the other thread's. */
	expect("private", SIGUSR2, SI_TKILL, 0);
	if (SPOIL("private"))
		expect("spoil", SIGRTMIN + 2, SI_QUEUE, 7);
	expect("private", SIGRTMIN + 2, SI_QUEUE, 7);
	expect("private", SIGRTMIN + 2, SI_QUEUE, 6);
	expect("private", -1, 0, 0);
	return NULL;
}

int main(int argc, char **argv)
{
	sigset_t all;
	pthread_t t;

	guest_init(argc, argv);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	pthread_barrier_init(&built, NULL, 2);
	pthread_mutex_lock(&gate);
	CHECK(!pthread_create(&t, NULL, thread, NULL), "no thread");
	pthread_barrier_wait(&built);
	queue_to(thread_tid, SIGRTMIN + 2, 7);
	queue_to(thread_tid, SIGRTMIN + 2, 6);
	MUST(syscall(SYS_tgkill, getpid(), thread_tid, SIGUSR2));
	/* To the process: a standard signal twice counts once. */
	MUST(kill(getpid(), SIGHUP));
	MUST(kill(getpid(), SIGHUP));
	queue(SIGRTMAX, 1);
	queue(SIGRTMIN + 5, 30);
	queue(SIGRTMIN + 5, 10);
	queue(SIGRTMIN + 5, 20);
	queue(SIGINT, 4);
	/* To the first thread alone. */
	queue_to(getpid(), SIGUSR1, 77);
	guest_ready_wait();
	if (SPOIL("shared"))
		expect("spoil", SIGUSR1, SI_QUEUE, 77), expect("spoil", SIGHUP, SI_USER, 0);
	if (SPOIL("extra"))
		queue(SIGRTMAX, 2);
	expect("own", SIGUSR1, SI_QUEUE, 77);
	expect("shared", SIGHUP, SI_USER, 0);
	expect("shared", SIGINT, SI_QUEUE, 4);
	expect("shared", SIGRTMIN + 5, SI_QUEUE, 30);
	expect("shared", SIGRTMIN + 5, SI_QUEUE, 10);
	expect("shared", SIGRTMIN + 5, SI_QUEUE, 20);
	expect("shared", SIGRTMAX, SI_QUEUE, 1);
	expect("shared", -1, 0, 0);
	pthread_mutex_unlock(&gate);
	pthread_join(t, NULL);
	guest_pass();
}
