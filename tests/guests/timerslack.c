/* Timer slack of each thread. */
#include "guest.h"

static pthread_barrier_t built;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void *thread(UNUSED void *arg)
{
	MUST(prctl(PR_SET_TIMERSLACK, 123456));
	pthread_barrier_wait(&built);
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	if (SPOIL("thread"))
		prctl(PR_SET_TIMERSLACK, 0);
	SAME("timer slack of the thread", prctl(PR_GET_TIMERSLACK), 123456);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t t;

	guest_init(argc, argv);
	pthread_barrier_init(&built, NULL, 2);
	pthread_mutex_lock(&gate);
	CHECK(!pthread_create(&t, NULL, thread, NULL), "no thread");
	MUST(prctl(PR_SET_TIMERSLACK, 70000));
	pthread_barrier_wait(&built);
	guest_ready_wait();
	if (SPOIL("first"))
		prctl(PR_SET_TIMERSLACK, 0);
	SAME("timer slack", prctl(PR_GET_TIMERSLACK), 70000);
	pthread_mutex_unlock(&gate);
	pthread_join(t, NULL);
	guest_pass();
}
