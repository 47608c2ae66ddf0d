/* Credentials of each task and thread: all four uids and gids, groups, five capability sets, securebits. */
#include "guest.h"
#include <linux/keyctl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>

static pthread_barrier_t built;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

/* glibc would change all threads: the raw calls change only the caller. */
static void set_caps(uint64_t eff, uint64_t perm, uint64_t inh)
{
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2] = { { eff, perm, inh }, { eff >> 32, perm >> 32, inh >> 32 } };

	MUST(syscall(SYS_capset, &h, d));
}

/* The credential lines of /proc/thread-self/status. */
static void snapshot(char *into, size_t size)
{
	char path[64], line[512];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%ld/status", syscall(SYS_gettid));
	f = fopen(path, "re");
	CHECK(f, "cannot read %s", path);
	*into = 0;
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, "Uid", 3) || !strncmp(line, "Gid", 3) || !strncmp(line, "Groups", 6) || !strncmp(line, "Cap", 3))
			strncat(into, line, size - strlen(into) - 1);
	fclose(f);
	snprintf(line, sizeof(line), "securebits %d\n", prctl(PR_GET_SECUREBITS));
	strncat(into, line, size - strlen(into) - 1);
	/* -1 changes nothing and gives what is set */
	snprintf(line, sizeof(line), "keyring for request_key %ld\n", syscall(SYS_keyctl, KEYCTL_SET_REQKEY_KEYRING, -1));
	strncat(into, line, size - strlen(into) - 1);
}

static void build(int who)
{
	gid_t some[] = { 5, 7, 65533, 100000 };
	uint64_t few = 1ull << CAP_KILL | 1ull << CAP_CHOWN | 1ull << CAP_SETPCAP | 1ull << CAP_CHECKPOINT_RESTORE;

	switch (who) {
	case 0: /* the root's first thread: root with groups, dropped bounding capability, ambient */
		MUST(syscall(SYS_setgroups, 4, some));
		syscall(SYS_keyctl, KEYCTL_SET_REQKEY_KEYRING, KEY_REQKEY_DEFL_SESSION_KEYRING);
		MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
		MUST(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED));
		break;
	case 1: /* a thread with ids that all differ */
		MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED));
		syscall(SYS_keyctl, KEYCTL_SET_REQKEY_KEYRING, KEY_REQKEY_DEFL_THREAD_KEYRING);
		MUST(syscall(SYS_setresgid, 11, 12, 13));
		MUST(syscall(SYS_setresuid, 21, 22, 23));
		setfsuid(24);
		setfsgid(14);
		break;
	case 2: /* few capabilities, different in each set */
		set_caps(1ull << CAP_KILL | 1ull << CAP_SETPCAP, few, 1ull << CAP_CHOWN);
		MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
		break;
	case 3: /* a nobody without anything */
		MUST(syscall(SYS_setgroups, 0, NULL));
		MUST(syscall(SYS_setresgid, 65534, 65534, 65534));
		MUST(syscall(SYS_setresuid, 65534, 65534, 65534));
		break;
	}
}

static void verify(int who, const char *was)
{
	char now[2048];

	if (SPOIL("groups") && who == 0)
		syscall(SYS_setgroups, 0, NULL);
	if (SPOIL("reqkey") && who == 0)
		syscall(SYS_keyctl, KEYCTL_SET_REQKEY_KEYRING, KEY_REQKEY_DEFL_USER_KEYRING);
	if (SPOIL("bits") && who == 0)
		prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED);
	if (SPOIL("bounding") && who == 0)
		prctl(PR_CAPBSET_DROP, CAP_SYS_TTY_CONFIG);
	if (SPOIL("fsuid") && who == 1)
		setfsuid(21);
	if (SPOIL("thread-caps") && who == 2)
		set_caps(0, 0, 0);
	if (SPOIL("child") && who == 3)
		was = "";
	snapshot(now, sizeof(now));
	for (const char *a = was, *b = now; *a || *b;) {
		size_t la = strcspn(a, "\n"), lb = strcspn(b, "\n");

		CHECK(la == lb && !memcmp(a, b, la), "task %d has \"%.*s\", not \"%.*s\"", who, (int)lb, b, (int)la, a);
		a += la + !!a[la];
		b += lb + !!b[lb];
	}
}

static void *thread(void *arg)
{
	char was[2048];

	build((int)(long)arg);
	snapshot(was, sizeof(was));
	pthread_barrier_wait(&built);
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	verify((int)(long)arg, was);
	return NULL;
}

static void child(UNUSED void *arg)
{
	char was[2048];

	build(3);
	prctl(PR_SET_DUMPABLE, 1);
	snapshot(was, sizeof(was));
	guest_child_ready_wait();
	verify(3, was);
}

int main(int argc, char **argv)
{
	char was[2048];
	pthread_t t[2];
	pid_t kid;

	guest_init(argc, argv);
	kid = guest_child(child, NULL);
	build(0);
	snapshot(was, sizeof(was));
	pthread_barrier_init(&built, NULL, 3);
	pthread_mutex_lock(&gate);
	for (long i = 0; i < 2; i++)
		CHECK(!pthread_create(&t[i], NULL, thread, (void *)(i + 1)), "no thread");
	pthread_barrier_wait(&built);
	prctl(PR_SET_DUMPABLE, 1);
	guest_ready_wait();
	verify(0, was);
	pthread_mutex_unlock(&gate);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	guest_child_finish(kid);
	guest_pass();
}
