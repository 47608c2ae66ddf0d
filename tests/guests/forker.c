/* A tree that changes while it is frozen: a task that forks and reaps all the time, and threads that come and go. */
#include "guest.h"

static volatile sig_atomic_t stop;
static volatile long forks, threads;

static void *brief(UNUSED void *arg)
{
	return NULL;
}

static void *makes_threads(UNUSED void *arg)
{
	pthread_t t;

	while (!stop) {
		CHECK(!pthread_create(&t, NULL, brief, NULL), "no thread");
		CHECK(!pthread_join(t, NULL), "no join");
		threads++;
		usleep(200);
	}
	return NULL;
}

static void *forks_on(UNUSED void *arg)
{
	while (!stop) {
		pid_t kid = MUST(fork());
		int status;

		if (!kid) {
			usleep(300);
			_exit(forks & 0x7f);
		}
		SAME("child", waitpid(kid, &status, 0), kid);
		if (SPOIL("status") && stop)
			status++;
		SAME("status of the child", status, (forks & 0x7f) << 8);
		forks++;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t t[2];
	long before;

	guest_init(argc, argv);
	CHECK(!pthread_create(&t[0], NULL, makes_threads, NULL), "no thread");
	CHECK(!pthread_create(&t[1], NULL, forks_on, NULL), "no thread");
	while (forks < 5 || threads < 5)
		usleep(100);
	guest_ready_wait();
	before = forks;
	if (SPOIL("idle"))
		stop = 1;
	for (int i = 0; i < 3000 && forks < before + 10; i++)
		usleep(1000);
	CHECK(forks >= before + 10, "it does not fork any more");
	stop = 1;
	pthread_join(t[0], NULL);
	pthread_join(t[1], NULL);
	guest_pass();
}
