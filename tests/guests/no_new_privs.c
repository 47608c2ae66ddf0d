/* no_new_privs of each thread. */
#include "guest.h"

static pthread_barrier_t built;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void *thread(UNUSED void *arg)
{
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	pthread_barrier_wait(&built);
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	SAME("no_new_privs of the thread", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), SPOIL("thread") ? 0 : 1);
	return NULL;
}

static void child(UNUSED void *arg)
{
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	guest_child_ready_wait();
	SAME("no_new_privs of the child", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
}

int main(int argc, char **argv)
{
	pthread_t t;
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	pthread_barrier_init(&built, NULL, 2);
	pthread_mutex_lock(&gate);
	CHECK(!pthread_create(&t, NULL, thread, NULL), "no thread");
	pthread_barrier_wait(&built);
	guest_ready_wait();
	if (SPOIL("first"))
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	SAME("no_new_privs of the first thread", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 0);
	pthread_mutex_unlock(&gate);
	pthread_join(t, NULL);
	guest_child_finish(kid);
	guest_pass();
}
