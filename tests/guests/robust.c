/* Robust futexes: the list of each thread is still known to the kernel, so a mutex of a dead owner is handed on. */
#include "guest.h"

struct shared {
	pthread_mutex_t mutex, held;
};

static struct shared *mem;
static pthread_barrier_t built;

static void *thread(UNUSED void *arg)
{
	pthread_mutex_lock(&mem->mutex);
	pthread_barrier_wait(&built);
	/* Ends with the mutex locked, after the freeze. */
	pthread_mutex_lock(&mem->held);
	pthread_mutex_unlock(&mem->held);
	if (SPOIL("list"))
		syscall(SYS_set_robust_list, &(void *[3]){ 0 }, 24);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_mutexattr_t attr;
	void *head = NULL, *now = NULL;
	size_t len;
	pthread_t t;
	int err;

	guest_init(argc, argv);
	mem = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&mem->mutex, &attr);
	pthread_mutex_init(&mem->held, &attr);
	pthread_barrier_init(&built, NULL, 2);
	MUST(syscall(SYS_get_robust_list, 0, &head, &len));
	CHECK(head, "glibc set no robust list");
	pthread_mutex_lock(&mem->held);
	CHECK(!pthread_create(&t, NULL, thread, NULL), "no thread");
	pthread_barrier_wait(&built);
	guest_ready_wait();
	if (SPOIL("own"))
		syscall(SYS_set_robust_list, NULL, 24);
	MUST(syscall(SYS_get_robust_list, 0, &now, &len));
	CHECK(now == head, "robust list of the first thread is %p, not %p", now, head);
	pthread_mutex_unlock(&mem->held);
	pthread_join(t, NULL);
	err = pthread_mutex_trylock(&mem->mutex);
	SAME("lock of the dead owner's mutex", err, EOWNERDEAD);
	guest_pass();
}
