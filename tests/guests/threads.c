/* Threads: ids, names, thread-local storage, stacks and mutexes. argv[3] is how many (64). */
#include "guest.h"

static pthread_barrier_t built;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static __thread unsigned long mine;

static void *body(void *arg)
{
	unsigned long n = (unsigned long)arg, on_stack = n * 3;
	pid_t tid = syscall(SYS_gettid);
	char name[16], now[16];

	mine = n * 5;
	snprintf(name, sizeof(name), "t%lu", n);
	MUST(prctl(PR_SET_NAME, name));
	pthread_barrier_wait(&built);
	/* All threads sleep in a futex here while they are frozen. */
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	if (SPOIL("tls") && n == 3)
		mine = 0;
	if (SPOIL("name") && n == 3)
		prctl(PR_SET_NAME, "wrong");
	if (SPOIL("tid") && n == 3)
		tid++;
	SAME("tid", syscall(SYS_gettid), tid);
	SAME("thread-local", mine, n * 5);
	SAME("on stack", on_stack, n * 3);
	MUST(prctl(PR_GET_NAME, now));
	CHECK(!strcmp(now, name), "thread %lu is named %s", n, now);
	return (void *)(n + 1);
}

int main(int argc, char **argv)
{
	pthread_attr_t attr;
	pthread_t *all;
	long count;
	void *ret;

	guest_init(argc, argv);
	count = guest_arg(0, 64);
	all = calloc(count, sizeof(*all));
	pthread_barrier_init(&built, NULL, count + 1);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	pthread_mutex_lock(&gate);
	for (long i = 0; i < count; i++)
		CHECK(!pthread_create(&all[i], &attr, body, (void *)i), "cannot create thread %ld", i);
	pthread_barrier_wait(&built);
	guest_ready_wait();
	if (SPOIL("count"))
		count++;
	SAME("threads", guest_field(guest_slurp("/proc/self/status"), "Threads:", 10), count + 1);
	pthread_mutex_unlock(&gate);
	for (long i = 0; i < count; i++) {
		CHECK(!pthread_join(all[i], &ret), "thread %ld cannot be joined", i);
		SAME("value of the thread", (long)ret, i + 1);
	}
	guest_pass();
}
