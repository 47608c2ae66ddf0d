/* I/O priority: class and level of each thread. */
#include "guest.h"

#define IOPRIO(class, data) ((class) << 13 | (data))

static pthread_barrier_t built;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static const int wants[] = { IOPRIO(2, 6), IOPRIO(1, 3), IOPRIO(3, 0), IOPRIO(2, 1) };
enum { N = sizeof(wants) / sizeof(*wants) };

static void *thread(void *arg)
{
	int want = wants[(long)arg];

	MUST(syscall(SYS_ioprio_set, 1, 0, want));
	pthread_barrier_wait(&built);
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	if (SPOIL("thread") && (long)arg == 1)
		syscall(SYS_ioprio_set, 1, 0, IOPRIO(2, 4));
	SAME("I/O priority", syscall(SYS_ioprio_get, 1, 0), want);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t t[N];

	guest_init(argc, argv);
	pthread_barrier_init(&built, NULL, N);
	pthread_mutex_lock(&gate);
	for (long i = 1; i < N; i++)
		CHECK(!pthread_create(&t[i], NULL, thread, (void *)i), "no thread");
	MUST(syscall(SYS_ioprio_set, 1, 0, wants[0]));
	pthread_barrier_wait(&built);
	guest_ready_wait();
	if (SPOIL("first"))
		syscall(SYS_ioprio_set, 1, 0, 0);
	SAME("I/O priority", syscall(SYS_ioprio_get, 1, 0), wants[0]);
	pthread_mutex_unlock(&gate);
	for (int i = 1; i < N; i++)
		pthread_join(t[i], NULL);
	guest_pass();
}
