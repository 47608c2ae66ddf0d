/*
 * POSIX message queues: messages of several priorities and lengths in their order, sizes, mode, flags of each open file, one open
 * file in two slots, a queue without a name, one that nobody has open, and who is told of the first message: by a signal, through a
 * thread, not at all.
 */
#include "guest.h"
#include <mqueue.h>
#include <semaphore.h>

static const struct mq_attr sizes = { .mq_maxmsg = 6, .mq_msgsize = 8192 };
static char buf[8192];

static void send_one(mqd_t q, unsigned priority, size_t len, unsigned seed)
{
	guest_fill(buf, len, seed);
	MUST(mq_send(q, buf, len, priority));
}

static void want(mqd_t q, unsigned priority, size_t len, unsigned seed)
{
	unsigned is;
	ssize_t n = mq_receive(q, buf, sizeof(buf), &is);

	CHECK(n >= 0, "a message of priority %u: %s", priority, strerror(errno));
	SAME("priority", is, priority);
	SAME("length", n, len);
	CHECK(guest_filled(buf, len, seed), "a message of priority %u has changed", priority);
}

static volatile int told, value;
static volatile sig_atomic_t code;
static sem_t woken;

static void on_signal(int sig UNUSED, siginfo_t *si, void *u UNUSED)
{
	told++;
	value = si->si_value.sival_int;
	code = si->si_code;
}

static void on_thread(union sigval v)
{
	value = v.sival_int;
	sem_post(&woken);
}

int main(int argc, char **argv)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 4711 };
	struct sigaction act = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
	mqd_t all, in, gone, quiet, bell, thread, twin, closed;
	struct mq_attr is;
	struct stat st;
	char name[6][64];

	guest_init(argc, argv);
	for (int i = 0; i < 6; i++)
		snprintf(name[i], sizeof(name[i]), "/stasis-guest-%d-%d", getpid(), i);
	all = MUST(mq_open(name[0], O_RDWR | O_CREAT | O_EXCL, 0640, &sizes));
	MUST(fchmod(all, 0604));
	in = MUST(mq_open(name[0], O_WRONLY | O_NONBLOCK));
	twin = MUST(dup(all));
	gone = MUST(mq_open(name[1], O_RDWR | O_CREAT | O_EXCL, 0600, &sizes));
	MUST(mq_unlink(name[1]));
	bell = MUST(mq_open(name[2], O_RDWR | O_CREAT | O_EXCL, 0600, &sizes));
	thread = MUST(mq_open(name[3], O_RDWR | O_CREAT | O_EXCL, 0600, &sizes));
	quiet = MUST(mq_open(name[4], O_RDWR | O_CREAT | O_EXCL, 0600, &sizes));
	closed = MUST(mq_open(name[5], O_RDWR | O_CREAT | O_EXCL, 0600, &sizes));
	send_one(closed, 5, 5, 50);
	MUST(mq_close(closed));
	send_one(all, 3, 13, 1);
	send_one(all, 0, 8192, 2);
	send_one(all, 3, 0, 3);
	send_one(all, 32767, 4096, 4);
	send_one(all, 0, 1, 5);
	send_one(gone, 1, 4049, 6);
	MUST(sigaction(SIGUSR1, &act, NULL));
	MUST(mq_notify(bell, &event));
	event.sigev_notify = SIGEV_NONE;
	MUST(mq_notify(quiet, &event));
	MUST(sem_init(&woken, 0, 0));
	event = (struct sigevent){ .sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_thread, .sigev_value.sival_int = 815 };
	MUST(mq_notify(thread, &event));
	guest_ready_wait();
	if (SPOIL("order"))
		mq_receive(all, buf, sizeof(buf), NULL), mq_send(all, buf, 4096, 1);
	if (SPOIL("content"))
		mq_receive(gone, buf, sizeof(buf), NULL), buf[4001] ^= 1, mq_send(gone, buf, 4049, 1);
	if (SPOIL("more"))
		send_one(all, 0, 1, 9);
	if (SPOIL("mode"))
		fchmod(all, 0600);
	if (SPOIL("flags"))
		mq_setattr(in, &(struct mq_attr){ 0 }, NULL);
	if (SPOIL("bell"))
		mq_notify(bell, NULL);
	if (SPOIL("free"))
		mq_notify(quiet, NULL);
	if (SPOIL("linked"))
		mq_open(name[1], O_RDWR | O_CREAT, 0600, &sizes);
	MUST(mq_getattr(all, &is));
	SAME("messages", is.mq_curmsgs, 5);
	SAME("most messages", is.mq_maxmsg, sizes.mq_maxmsg);
	SAME("longest message", is.mq_msgsize, sizes.mq_msgsize);
	SAME("flags", is.mq_flags, 0);
	MUST(mq_getattr(in, &is));
	SAME("flags of the other", is.mq_flags, O_NONBLOCK);
	CHECK(mq_receive(in, buf, sizeof(buf), NULL) == -1 && errno == EBADF, "a queue open for writing can be read");
	MUST(fstat(all, &st));
	SAME("mode", st.st_mode & 07777, 0604);
	send_one(in, 1, 2, 7);
	CHECK(mq_send(in, "x", 1, 0) == -1 && errno == EAGAIN, "a full queue takes more");
	want(twin, 32767, 4096, 4);
	want(all, 3, 13, 1);
	want(twin, 3, 0, 3);
	want(all, 1, 2, 7);
	want(all, 0, 8192, 2);
	want(all, 0, 1, 5);
	CHECK(mq_open(name[1], O_RDWR) == -1 && errno == ENOENT, "a queue that was unlinked has its name again");
	want(gone, 1, 4049, 6);
	closed = MUST(mq_open(name[5], O_RDWR));
	want(closed, 5, 5, 50);
	send_one(bell, 1, 1, 8);
	SAME("signals", told, 1);
	SAME("their value", value, 4711);
	SAME("their code", code, SI_MESGQ);
	event = (struct sigevent){ .sigev_notify = SIGEV_NONE };
	CHECK(mq_notify(quiet, &event) == -1 && errno == EBUSY, "nobody waits for messages any more");
	send_one(thread, 1, 1, 9);
	while (sem_wait(&woken) && errno == EINTR)
		;
	SAME("value in the thread", value, 815);
	for (int i = 0; i < 6; i++)
		mq_unlink(name[i]);
	guest_pass();
}
