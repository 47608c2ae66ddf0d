/* Seccomp filters: two stacked in the first thread, another one in the second thread, none in the third. */
#include "guest.h"
#include <linux/filter.h>
#include <linux/seccomp.h>

static pthread_barrier_t built;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

/* Makes one system call fail with the given errno in the calling thread. */
static void forbid(int nr, int err)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { 4, code };

	MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog));
}

/* What the three forbidden calls say in the calling thread: 0 or an errno each. */
static void expect(const char *who, int a, int b, int c)
{
	SAME(who, syscall(SYS_getuid) == -1 ? errno : 0, a);
	SAME(who, syscall(SYS_getgid) == -1 ? errno : 0, b);
	SAME(who, syscall(SYS_times, NULL) == -1 ? errno : 0, c);
}

static void *thread(void *arg)
{
	if (arg)
		forbid(SYS_times, E2BIG);
	pthread_barrier_wait(&built);
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	if (SPOIL("second") && arg)
		forbid(SYS_getuid, EIO);
	if (SPOIL("third") && !arg)
		forbid(SYS_getuid, EIO);
	expect(arg ? "second thread" : "third thread", 0, 0, arg ? E2BIG : 0);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t t[2];

	guest_init(argc, argv);
	pthread_barrier_init(&built, NULL, 3);
	pthread_mutex_lock(&gate);
	for (long i = 0; i < 2; i++)
		CHECK(!pthread_create(&t[i], NULL, thread, (void *)i), "no thread");
	forbid(SYS_getuid, EBADMSG);
	if (!SPOIL("one"))
		forbid(SYS_getgid, EDOM);
	pthread_barrier_wait(&built);
	guest_ready_wait();
	if (SPOIL("first"))
		forbid(SYS_times, EIO);
	expect("first thread", EBADMSG, EDOM, 0);
	SAME("filters of the first thread", guest_field(guest_slurp("/proc/thread-self/status"), "Seccomp_filters:", 10), 2);
	pthread_mutex_unlock(&gate);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	guest_pass();
}
