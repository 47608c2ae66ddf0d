/* Scheduling of each thread: policy, priority, nice, reset-on-fork, affinity; oom_score_adj. */
#include "guest.h"
#include <sys/resource.h>

struct state {
	int policy, prio, nice;
	unsigned long cpus;
};

static pthread_barrier_t built;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static const struct state wants[] = {
	{ SCHED_OTHER, 0, 5, 1 },
	{ SCHED_FIFO, 12, 0, 0 },
	{ SCHED_RR | SCHED_RESET_ON_FORK, 7, 0, 0 },
	{ SCHED_BATCH, 0, 11, 0 },
	{ SCHED_IDLE, 0, 19, 1 },
};
enum { N = sizeof(wants) / sizeof(*wants) };

static void set(const struct state *w)
{
	struct sched_param p = { .sched_priority = w->prio };
	pid_t tid = syscall(SYS_gettid);

	if (w->cpus)
		MUST(syscall(SYS_sched_setaffinity, tid, sizeof(w->cpus), &w->cpus));
	MUST(syscall(SYS_sched_setscheduler, tid, w->policy, &p));
	if (w->nice)
		MUST(setpriority(PRIO_PROCESS, tid, w->nice));
}

static void check(int n, unsigned long cpus)
{
	const struct state *w = &wants[n];
	struct sched_param p;
	pid_t tid = syscall(SYS_gettid);
	unsigned long now = 0;

	if (SPOIL("policy") && n == 1)
		syscall(SYS_sched_setscheduler, tid, SCHED_OTHER, &(struct sched_param){ 0 });
	if (SPOIL("reset") && n == 2)
		syscall(SYS_sched_setscheduler, tid, SCHED_RR, &(struct sched_param){ 7 });
	if (SPOIL("nice") && n == 3)
		setpriority(PRIO_PROCESS, tid, 12);
	if (SPOIL("affinity") && n == 4)
		cpus = 0;
	SAME("policy", syscall(SYS_sched_getscheduler, tid), w->policy);
	MUST(syscall(SYS_sched_getparam, tid, &p));
	SAME("priority", p.sched_priority, w->prio);
	errno = 0;
	SAME("nice", getpriority(PRIO_PROCESS, tid), w->nice);
	MUST(syscall(SYS_sched_getaffinity, tid, sizeof(now), &now));
	SAME("affinity", now, cpus);
}

static void *thread(void *arg)
{
	unsigned long cpus = 0;

	set(&wants[(long)arg]);
	MUST(syscall(SYS_sched_getaffinity, 0, sizeof(cpus), &cpus));
	pthread_barrier_wait(&built);
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	check((int)(long)arg, cpus);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t t[N];
	unsigned long cpus = 0;
	int fd;

	guest_init(argc, argv);
	pthread_barrier_init(&built, NULL, N);
	pthread_mutex_lock(&gate);
	for (long i = 1; i < N; i++)
		CHECK(!pthread_create(&t[i], NULL, thread, (void *)i), "no thread");
	set(&wants[0]);
	MUST(syscall(SYS_sched_getaffinity, 0, sizeof(cpus), &cpus));
	fd = MUST(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
	SAME("written", write(fd, "321", 3), 3);
	close(fd);
	pthread_barrier_wait(&built);
	guest_ready_wait();
	if (SPOIL("oom")) {
		fd = MUST(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
		SAME("written", write(fd, "400", 3), 3);
		close(fd);
	}
	SAME("oom_score_adj", atoi(guest_slurp("/proc/self/oom_score_adj")), 321);
	check(0, cpus);
	pthread_mutex_unlock(&gate);
	for (int i = 1; i < N; i++)
		pthread_join(t[i], NULL);
	guest_pass();
}
