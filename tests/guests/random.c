/*
 * A tree that is built after a plan (argv[3]), for tests/random.rs. Long because the plan's whole language is here.
 *
 * The plan is a line of words: a letter, up to two numbers. It is carried out from left to right; "(N" begins a child,
 * ")" ends it, and a parent goes on only when its child is built. So every task can know what all others did: each word
 * is first played in thought (think()), which gives what every task must find in the end (struct view for what is its
 * own, struct pipe, file, ... for what is shared), and then by the task it belongs to (act()). A word that makes no
 * sense where it stands is passed over, so every line of words is a plan, and a shrunk one too.
 *
 * Numbers that choose a slot or mapping count those the task has, modulo how many there are.
 */
#include "guest.h"
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/timerfd.h>

enum { TASKS = 40, WORDS = 600, SLOTS = 48, MAPS = 24, PAGES = 8, THREADS = 12, SIGNALS = 6, QUEUE = 8, TIMERS = 4 };
enum { SESSION = 1, GROUP = 2, ZOMBIE = 4, REAPED = 8, STOPPED = 16, EXITS = ZOMBIE | REAPED };
enum { ZERO = -3, HOLE = -2, OF_FILE = -1 };
#define SIGNAL(n) (40 + (n) % SIGNALS)

/* One word: resolved to the slot or mapping `at`, unless it is to be passed over. */
struct word {
	char letter;
	int a, b, at, end, pass;
};

/* What one task has of its own; a child begins with a copy. */
struct view {
	char has[SLOTS], cloexec[SLOTS];
	char mapped[MAPS], readonly[MAPS];
	int page[MAPS][PAGES];
	char blocked[SIGNALS], handler[SIGNALS];
	int niceness, mask, files, name, folder;
	/* Not for children. */
	int queued[SIGNALS][QUEUE], queue[SIGNALS];
	int timers, interval[3], threads;
};

/* What is behind the slots: `object` is an open file; several slots may lead to one. */
static struct {
	char kind;
	int object;
} slots[SLOTS];
static struct {
	char bytes[32768];
	int len, writes, flags;
} pipes[SLOTS];
static struct {
	int page[PAGES], deleted;
} files[SLOTS];
static struct {
	int file, offset, append;
} opens[SLOTS];
static unsigned long long counts[SLOTS];
static struct {
	int kind, pages, file, page[PAGES];
} maps[MAPS];
static struct {
	int parent, flags;
	/* Leads a group; is in another session than its parent was; takes orphans in; who takes its own children in. */
	int leads, left, reaper, heir;
	struct view view;
} tasks[TASKS];
static struct word words[WORDS];
static int n_words, n_slots, n_objects, n_maps, n_tasks, n_folders;

/* What only doing gives. */
static int fds[SLOTS];
static char *mems[MAPS];
static pid_t kids[TASKS];
/* Of all tasks, in memory that all share. */
static struct {
	pid_t pid, session, group;
} *family;
static timer_t timer_ids[TIMERS];
static int me;

struct thread {
	pthread_t id;
	pthread_mutex_t gate;
	int number, ready, how, wake[2];
	pid_t tid;
};
static struct thread *threads[THREADS];
static __thread int own_number;

static int pick(const char *has, int n, int choice, const char *kinds)
{
	int at[SLOTS], k = 0;

	for (int i = 0; i < n; i++)
		if (has[i] && (!kinds || strchr(kinds, slots[i].kind)))
			at[k++] = i;
	return k ? at[choice % k] : -1;
}

static int new_slot(struct view *v, char kind, int object)
{
	slots[n_slots].kind = kind;
	slots[n_slots].object = object;
	v->has[n_slots] = 1;
	return n_slots++;
}

/* A living child that is in the session of its parent; -1 if there is none. */
static int pick_child(int task, int choice)
{
	int at[TASKS], k = 0;

	for (int t = 1; t < n_tasks; t++)
		if (tasks[t].parent == task && !(tasks[t].flags & EXITS) && !tasks[t].left)
			at[k++] = t;
	return k && !(tasks[task].flags & EXITS) ? at[choice % k] : -1;
}

/* Plays one word in the task's view; 0 if it is to be passed over. */
static int think_word(struct word *w, int task, struct view *v)
{
	int s = w->a % SIGNALS, i;

	switch (w->letter) {
	case 'p': /* a pipe; b & 1: packets */
	case 'F': /* a file */
	case 'e': /* an eventfd that counts a */
	case 'f': /* a timerfd */
		if (n_slots + 1 >= SLOTS)
			return 0;
		i = n_objects++;
		w->at = new_slot(v, w->letter == 'p' ? 'r' : w->letter, i);
		if (w->letter == 'p') {
			new_slot(v, 'w', i);
			pipes[i].flags = (w->b & 1 ? O_DIRECT : 0) | (w->b & 2 ? O_NONBLOCK : 0);
		} else if (w->letter == 'F') {
			opens[i].file = i;
			for (int p = 0; p < PAGES; p++)
				files[i].page[p] = 1000 + i * 16 + p;
		} else {
			counts[i] = w->a;
		}
		return 1;
	case 'w': /* b bytes into pipe a */
		if ((w->at = pick(v->has, n_slots, w->a, "w")) < 0)
			return 0;
		i = slots[w->at].object;
		if (pipes[i].len + w->b % 4000 + 1 > (int)sizeof(pipes[i].bytes) || ++pipes[i].writes > 15)
			return 0;
		for (int k = 0; k < w->b % 4000 + 1; k++)
			pipes[i].bytes[pipes[i].len++] = (char)(w->b + k * 7);
		return 1;
	case 'E': /* eventfd a counts on by b */
		if ((w->at = pick(v->has, n_slots, w->a, "e")) < 0)
			return 0;
		counts[slots[w->at].object] += w->b;
		return 1;
	case 's': /* file a to offset b */
	case 'a': /* file a appends, or no more */
	case 'o': /* file a opened once more */
	case 'u': /* file a deleted */
		if ((w->at = pick(v->has, n_slots, w->a, "F")) < 0)
			return 0;
		i = slots[w->at].object;
		if (w->letter == 's') {
			opens[i].offset = w->b;
		} else if (w->letter == 'a') {
			opens[i].append = w->b & 1;
		} else if (files[opens[i].file].deleted || n_slots >= SLOTS) {
			return 0;
		} else if (w->letter == 'u') {
			files[opens[i].file].deleted = 1;
		} else {
			opens[n_objects].file = opens[i].file;
			w->b = new_slot(v, 'F', n_objects++);
		}
		return 1;
	case 'd': /* slot a duplicated */
	case 'c': /* slot a closed */
	case 'C': /* slot a closed on exec, or no more */
		if ((w->at = pick(v->has, n_slots, w->a, NULL)) < 0 || (w->letter == 'd' && n_slots >= SLOTS))
			return 0;
		/* A pipe without readers would kill its writers. */
		if (w->letter == 'c' && slots[w->at].kind == 'r')
			return 0;
		if (w->letter == 'd')
			w->b = new_slot(v, slots[w->at].kind, slots[w->at].object);
		else if (w->letter == 'c')
			v->has[w->at] = 0;
		else
			v->cloexec[w->at] = w->b & 1;
		return 1;
	case 'm': /* a mapping of b pages: 0 private, 1 shared, 2 private of a file, 3 shared of a file */
		if (n_maps >= MAPS)
			return 0;
		i = w->at = n_maps;
		maps[i].kind = w->a & 3;
		maps[i].pages = w->b % PAGES + 1;
		if (maps[i].kind > 1) {
			int slot = pick(v->has, n_slots, w->b, "F");

			if (slot < 0)
				return 0;
			w->b = slot;
			maps[i].file = opens[slots[slot].object].file;
		}
		n_maps++;
		v->mapped[i] = 1;
		for (int p = 0; p < PAGES; p++)
			v->page[i][p] = maps[i].page[p] = maps[i].kind > 1 ? OF_FILE : p & 1 ? ZERO : 5000 + i * 16 + p;
		return 1;
	case 'M': /* page b of mapping a written */
	case 'D': /* page b of mapping a dropped (if private) */
	case 'U': /* page b of mapping a unmapped */
	case 'R': /* mapping a made read-only */
		if ((w->at = pick(v->mapped, n_maps, w->a, NULL)) < 0)
			return 0;
		i = w->at;
		w->b %= maps[i].pages;
		if (v->page[i][w->b] == HOLE)
			return 0;
		if (w->letter == 'U') {
			v->page[i][w->b] = HOLE;
		} else if (w->letter == 'R') {
			for (int p = 0; p < maps[i].pages; p++)
				if (v->page[i][p] == HOLE)
					return 0;
			v->readonly[i] = 1;
		} else if (w->letter == 'D') {
			if (maps[i].kind & 1)
				return 0;
			v->page[i][w->b] = maps[i].kind ? OF_FILE : ZERO;
		} else if (v->readonly[i]) {
			return 0;
		} else if (maps[i].kind == 3) {
			files[maps[i].file].page[w->b] = 10000 + (int)(w - words);
		} else if (maps[i].kind == 1) {
			maps[i].page[w->b] = 10000 + (int)(w - words);
		} else {
			v->page[i][w->b] = 10000 + (int)(w - words);
		}
		return 1;
	case 'b': /* signal a blocked, or no more */
		if (v->queue[s])
			return 0;
		v->blocked[s] = w->b & 1;
		return 1;
	case 'h': /* signal a gets handler b */
		v->handler[s] = w->b & 3;
		/* Ignoring a signal drops what is pending. */
		if ((w->b & 3) == 1)
			v->queue[s] = 0;
		return 1;
	case 'q': /* signal a queued with value b; odd ones for the thread */
		if (!v->blocked[s] || v->queue[s] >= QUEUE)
			return 0;
		v->queued[s][v->queue[s]++] = w->b;
		return 1;
	case 'i': /* interval timer a */
		v->interval[w->a % 3] = 1000 + w->b;
		return 1;
	case 'T': /* a POSIX timer with signal a */
		return v->timers < TIMERS && ++v->timers;
	case 't': /* a thread that waits in manner a */
		return v->threads < THREADS && ++v->threads;
	case 'n': /* nicer by b */
		if (v->niceness + w->b % 3 > 19)
			return 0;
		v->niceness += w->b % 3;
		return 1;
	case 'k':
		v->mask = w->b & 0777;
		return 1;
	case 'l':
		v->files = 256 + w->b % 256;
		return 1;
	case 'N':
		v->name = w->b;
		return 1;
	case 'S': /* a session of its own */
	case 'G': /* a group of its own */
		if (tasks[task].leads)
			return 0;
		tasks[task].leads = 1;
		tasks[task].left |= w->letter == 'S';
		return 1;
	case 'J': /* child a joins the group of child b */
		w->at = pick_child(task, w->a);
		w->end = pick_child(task, w->b);
		return w->at != w->end;
	case 'B': /* takes in orphans */
		tasks[task].reaper = 1;
		return 1;
	case 'g': /* into a new folder; b & 1: which is removed */
		v->folder = w->end = ++n_folders;
		return 1;
	}
	guest_fail("no such word: %c", w->letter);
}

/* Plays everything in thought, from word `at` on, as the task; gives the word behind the task's end. */
static int think(int at, int task, struct view v)
{
	for (; at < n_words && words[at].letter != ')'; at++) {
		struct word *w = &words[at];

		if (w->letter != '(') {
			w->pass = !think_word(w, task, &v);
			continue;
		}
		w->at = n_tasks++;
		CHECK(w->at < TASKS, "too many tasks");
		tasks[w->at].parent = task;
		tasks[w->at].flags = w->a;
		tasks[w->at].left = w->a & SESSION;
		tasks[w->at].leads = !!(w->a & (SESSION | GROUP));
		/*
		 * A group that loses its last tie to the session while a task of it is stopped gets SIGHUP: not our matter.
		 * So nobody is stopped below one who exits, or where tasks leave their groups after they had children.
		 */
		for (int i = 0; i < n_words; i++)
			if (strchr("GSJ", words[i].letter))
				tasks[w->at].flags &= ~STOPPED;
		for (int t = task; t > 0; t = tasks[t].parent)
			if (tasks[t].flags & EXITS)
				tasks[w->at].flags &= ~STOPPED;
		struct view child = v;
		memset(child.queue, 0, sizeof(child.queue));
		memset(child.interval, 0, sizeof(child.interval));
		child.timers = child.threads = 0;
		w->end = at = think(at + 1, w->at, child);
		/* Ancestors do nothing until their child is built, so this holds when it exits. */
		int heir = task;
		while (heir && (tasks[heir].flags & EXITS || !tasks[heir].reaper))
			heir = tasks[heir].parent;
		tasks[w->at].heir = heir;
	}
	tasks[task].view = v;
	return at;
}

static void handler_a(UNUSED int sig)
{
}

static void handler_b(UNUSED int sig, UNUSED siginfo_t *info, UNUSED void *context)
{
}

static struct sigaction action(int s, int which)
{
	struct sigaction sa = { .sa_flags = which == 2 ? SA_RESTART : 0 };

	sigemptyset(&sa.sa_mask);
	if (which == 3) {
		sa.sa_sigaction = handler_b;
		sa.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
		sigaddset(&sa.sa_mask, SIGNAL(s + 1));
	} else {
		sa.sa_handler = which == 2 ? handler_a : which == 1 ? SIG_IGN : SIG_DFL;
	}
	return sa;
}

static void *thread_body(void *arg)
{
	struct thread *t = arg;
	char name[16], now[16], c;
	sigset_t set, was;

	own_number = t->number * 3;
	t->tid = syscall(SYS_gettid);
	snprintf(name, sizeof(name), "random-%d", t->number);
	MUST(prctl(PR_SET_NAME, name));
	sigfillset(&set);
	sigdelset(&set, SIGURG + t->number % 2);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	pthread_sigmask(SIG_SETMASK, NULL, &set);
	__atomic_store_n(&t->ready, 1, __ATOMIC_SEQ_CST);
	if (t->how == 0)
		pthread_mutex_lock(&t->gate);
	else if (t->how == 1)
		while (read(t->wake[0], &c, 1) != 1)
			CHECK(errno == EINTR, "a thread's read: %s", strerror(errno));
	else
		while (__atomic_load_n(&t->ready, __ATOMIC_SEQ_CST) != 2)
			nanosleep(&(struct timespec){ .tv_nsec = 3000000 }, NULL);
	if (SPOIL("thread"))
		own_number++;
	SAME("tid", syscall(SYS_gettid), t->tid);
	SAME("thread-local", own_number, t->number * 3);
	prctl(PR_GET_NAME, now);
	CHECK(!strcmp(name, now), "thread %s has the name %s", name, now);
	pthread_sigmask(SIG_SETMASK, NULL, &was);
	CHECK(!memcmp(&set, &was, 8), "the mask of thread %s", name);
	return NULL;
}

static void start_thread(int number, int how)
{
	struct thread *t = calloc(1, sizeof(*t));

	t->number = number;
	t->how = how;
	threads[number] = t;
	pthread_mutex_init(&t->gate, NULL);
	pthread_mutex_lock(&t->gate);
	MUST(pipe2(t->wake, O_CLOEXEC));
	errno = pthread_create(&t->id, NULL, thread_body, t);
	CHECK(!errno, "pthread_create: %s", strerror(errno));
	while (!__atomic_load_n(&t->ready, __ATOMIC_SEQ_CST))
		sched_yield();
}

static const char *name_of(char kind, int n)
{
	char name[32];

	snprintf(name, sizeof(name), "%c%d", kind, n);
	return guest_path(name);
}

static void child(void *arg);

/* Descriptors high up, so that the guest's own do not come between. */
static void place(int slot, int fd)
{
	fds[slot] = MUST(fcntl(fd, F_DUPFD, 60));
	close(fd);
}

/* Carries one word out. */
static void act(struct word *w)
{
	struct sigaction sa;
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL };
	siginfo_t info = { 0 };
	struct rlimit lim;
	sigset_t set;
	int s = w->a % SIGNALS, pair[2], fd, o = w->at < SLOTS ? slots[w->at].object : 0;
	static int n_threads, n_timers, counted;
	unsigned long long more = w->b;
	char page[PAGE], name[16];

	if (counted != me)
		counted = me, n_threads = n_timers = 0;
	switch (w->letter) {
	case 'p':
		MUST(pipe2(pair, pipes[o].flags));
		place(w->at, pair[0]);
		place(w->at + 1, pair[1]);
		if (w->b & 4)
			MUST(fcntl(fds[w->at], F_SETPIPE_SZ, 1 << 17));
		break;
	case 'F':
		fd = MUST(open(name_of('F', o), O_RDWR | O_CREAT, 0644));
		for (int p = 0; p < PAGES; p++) {
			guest_fill(page, PAGE, 1000 + o * 16 + p);
			CHECK(pwrite(fd, page, PAGE, p * PAGE) == PAGE, "pwrite");
		}
		place(w->at, fd);
		break;
	case 'e':
		place(w->at, MUST(eventfd(w->a, EFD_NONBLOCK)));
		break;
	case 'f':
		fd = MUST(timerfd_create(CLOCK_MONOTONIC, 0));
		MUST(timerfd_settime(fd, 0, &(struct itimerspec){ { 7, 0 }, { 2000 + w->a, 0 } }, NULL));
		place(w->at, fd);
		break;
	case 'w': {
		char bytes[4000];

		for (int k = 0; k < w->b % 4000 + 1; k++)
			bytes[k] = (char)(w->b + k * 7);
		CHECK(write(fds[w->at], bytes, w->b % 4000 + 1) == w->b % 4000 + 1, "a pipe is full");
		break;
	}
	case 'E':
		CHECK(write(fds[w->at], &more, 8) == 8, "eventfd: %s", strerror(errno));
		break;
	case 's':
		MUST(lseek(fds[w->at], w->b, SEEK_SET));
		break;
	case 'a':
		MUST(fcntl(fds[w->at], F_SETFL, w->b & 1 ? O_APPEND : 0));
		break;
	case 'o':
		place(w->b, MUST(open(name_of('F', opens[o].file), O_RDWR)));
		break;
	case 'u':
		MUST(unlink(name_of('F', opens[o].file)));
		break;
	case 'd':
		fds[w->b] = MUST(fcntl(fds[w->at], F_DUPFD, 60));
		break;
	case 'c':
		MUST(close(fds[w->at]));
		break;
	case 'C':
		MUST(fcntl(fds[w->at], F_SETFD, w->b & 1 ? FD_CLOEXEC : 0));
		break;
	case 'm': {
		int k = maps[w->at].kind, flags = (k & 1 ? MAP_SHARED : MAP_PRIVATE) | (k > 1 ? 0 : MAP_ANONYMOUS);

		mems[w->at] = (char *)MUST(mmap(NULL, maps[w->at].pages * PAGE, PROT_READ | PROT_WRITE, flags,
						k > 1 ? fds[w->b] : -1, 0));
		for (int p = 0; k < 2 && p < maps[w->at].pages; p += 2)
			guest_fill(mems[w->at] + p * PAGE, PAGE, 5000 + w->at * 16 + p);
		break;
	}
	case 'M':
		guest_fill(mems[w->at] + w->b * PAGE, PAGE, 10000 + (int)(w - words));
		break;
	case 'D':
		MUST(madvise(mems[w->at] + w->b * PAGE, PAGE, MADV_DONTNEED));
		break;
	case 'U':
		MUST(munmap(mems[w->at] + w->b * PAGE, PAGE));
		/* Nobody may come to live in the hole. */
		MUST(mmap(mems[w->at] + w->b * PAGE, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
		break;
	case 'R':
		MUST(mprotect(mems[w->at], maps[w->at].pages * PAGE, PROT_READ));
		break;
	case 'b':
		sigemptyset(&set);
		sigaddset(&set, SIGNAL(s));
		sigprocmask(w->b & 1 ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
		break;
	case 'h':
		sa = action(s, w->b & 3);
		MUST(sigaction(SIGNAL(s), &sa, NULL));
		break;
	case 'q':
		info.si_signo = SIGNAL(s);
		info.si_code = SI_QUEUE;
		info.si_pid = getpid();
		info.si_value.sival_int = w->b;
		MUST(w->b & 1 ? syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), SIGNAL(s), &info) :
				syscall(SYS_rt_sigqueueinfo, getpid(), SIGNAL(s), &info));
		break;
	case 'i':
		MUST(setitimer(w->a % 3, &(struct itimerval){ { 5, 0 }, { 1000 + w->b, 0 } }, NULL));
		break;
	case 'T':
		ev.sigev_signo = SIGNAL(s);
		MUST(timer_create(CLOCK_MONOTONIC, &ev, &timer_ids[n_timers]));
		MUST(timer_settime(timer_ids[n_timers], 0, &(struct itimerspec){ { 3, 0 }, { 3000 + n_timers, 0 } }, NULL));
		n_timers++;
		break;
	case 't':
		start_thread(n_threads++, w->a % 3);
		break;
	case 'n':
		errno = 0;
		CHECK(nice(w->b % 3) != -1 || !errno, "nice: %s", strerror(errno));
		break;
	case 'k':
		umask(w->b & 0777);
		break;
	case 'l':
		MUST(getrlimit(RLIMIT_NOFILE, &lim));
		lim.rlim_cur = 256 + w->b % 256;
		MUST(setrlimit(RLIMIT_NOFILE, &lim));
		break;
	case 'N':
		snprintf(name, sizeof(name), "task %d", w->b);
		MUST(prctl(PR_SET_NAME, name));
		break;
	case 'g':
		MUST(mkdir(name_of('D', w->end), 0755));
		MUST(chdir(name_of('D', w->end)));
		if (w->b & 1)
			MUST(rmdir(name_of('D', w->end)));
		break;
	case 'S':
		MUST(setsid());
		break;
	case 'G':
		MUST(setpgid(0, 0));
		break;
	case 'J':
		/* Both may have left for groups and sessions that are the parent's no more, if it left itself. */
		if (getsid(kids[w->at]) == getsid(kids[w->end]) && getsid(kids[w->at]) == getsid(0))
			MUST(setpgid(kids[w->at], getpgid(kids[w->end])));
		family[w->at].group = getpgid(kids[w->at]);
		break;
	case 'B':
		MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
		break;
	case '(': {
		int status, flags = tasks[w->at].flags;
		pid_t pid = kids[w->at] = guest_child(child, w);
		siginfo_t end;

		if (flags & REAPED)
			MUST(waitpid(pid, &status, 0));
		else if (flags & ZOMBIE)
			MUST(waitid(P_PID, pid, &end, WEXITED | WNOWAIT));
		else if (flags & STOPPED)
			MUST(waitpid(pid, &status, WUNTRACED));
		break;
	}
	}
}

static void build(int at)
{
	for (; at < n_words && words[at].letter != ')'; at++) {
		if (!words[at].pass)
			act(&words[at]);
		if (words[at].letter == '(')
			at = words[at].end;
	}
	family[me].pid = getpid();
	family[me].session = getsid(0);
	family[me].group = getpgrp();
}

/* One page against what it should hold. */
static void check_page(const char *mem, int version, const char *what, int n, int p)
{
	static const char zero[PAGE];

	if (version == ZERO)
		CHECK(!memcmp(mem, zero, PAGE), "page %d of %s %d of task %d is not zero", p, what, n, me);
	else
		CHECK(guest_filled(mem, PAGE, version), "page %d of %s %d of task %d is not version %d", p, what, n, me, version);
}

static void check_slot(int i, struct view *v)
{
	int fd = fds[i], o = slots[i].object, scratch[2], n;
	char path[64], page[PAGE], *bytes;
	struct itimerspec left;
	struct stat st;

	SAME("close-on-exec", MUST(fcntl(fd, F_GETFD)), v->cloexec[i]);
	for (int k = 0; k < i; k++)
		if (v->has[k] && slots[k].kind == slots[i].kind)
			SAME("two slots lead to one open file", !syscall(SYS_kcmp, getpid(), getpid(), 0, fds[k], fd),
			     slots[k].object == o);
	switch (slots[i].kind) {
	case 'r':
		MUST(ioctl(fd, FIONREAD, &n));
		SAME("bytes in a pipe", n, pipes[o].len + SPOIL("pipe"));
		MUST(pipe2(scratch, O_NONBLOCK));
		MUST(fcntl(scratch[0], F_SETPIPE_SZ, 1 << 18));
		bytes = malloc(n + 1);
		if (n)
			SAME("tee", tee(fd, scratch[1], n, SPLICE_F_NONBLOCK), n);
		for (int got = 0, more; got < n; got += more)
			CHECK((more = read(scratch[0], bytes + got, n - got)) > 0, "a pipe lost its end");
		CHECK(!memcmp(bytes, pipes[o].bytes, n), "the bytes of pipe %d", o);
		free(bytes);
		close(scratch[0]);
		close(scratch[1]);
		/* fall through */
	case 'w':
		SAME("flags of a pipe", fcntl(fd, F_GETFL) & (O_DIRECT | O_NONBLOCK), pipes[o].flags & (slots[i].kind == 'w' ? ~0 : ~O_DIRECT));
		break;
	case 'F':
		SAME("offset", lseek(fd, 0, SEEK_CUR), opens[o].offset + SPOIL("offset"));
		SAME("append", !!(fcntl(fd, F_GETFL) & O_APPEND), opens[o].append);
		MUST(fstat(fd, &st));
		SAME("links", st.st_nlink, !files[opens[o].file].deleted);
		for (int p = 0; p < PAGES; p++) {
			CHECK(pread(fd, page, PAGE, p * PAGE) == PAGE, "file %d is short", o);
			check_page(page, files[opens[o].file].page[p] + SPOIL("file"), "file", opens[o].file, p);
		}
		break;
	case 'e':
		snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
		SAME("eventfd", guest_field(guest_slurp(path), "eventfd-count:", 16), counts[o] + SPOIL("eventfd"));
		break;
	case 'f':
		MUST(timerfd_gettime(fd, &left));
		SAME("interval of a timerfd", left.it_interval.tv_sec, 7);
		CHECK(left.it_value.tv_sec > 1900 && left.it_value.tv_sec <= 2000 + (long)counts[o], "a timerfd has %ld s left",
		      left.it_value.tv_sec);
		break;
	}
}

static void check_signals(struct view *v)
{
	sigset_t mask;

	sigprocmask(SIG_SETMASK, NULL, &mask);
	for (int s = 0; s < SIGNALS; s++) {
		struct sigaction is, was = action(s, v->handler[s]);
		sigset_t one;
		siginfo_t info;

		SAME("blocked", sigismember(&mask, SIGNAL(s)), v->blocked[s] ^ SPOIL("mask"));
		MUST(sigaction(SIGNAL(s), NULL, &is));
		CHECK(is.sa_handler == was.sa_handler && (is.sa_flags & ~0x04000000) == was.sa_flags &&
			      !memcmp(&is.sa_mask, &was.sa_mask, 8),
		      "the action of signal %d of task %d", SIGNAL(s), me);
		sigemptyset(&one);
		sigaddset(&one, SIGNAL(s));
		/* The thread's own queue is served before the shared one. */
		for (int own = 1; own >= 0; own--)
			for (int k = 0; k < v->queue[s]; k++) {
				if ((v->queued[s][k] & 1) != own)
					continue;
				SAME("a queued signal", sigtimedwait(&one, &info, &(struct timespec){ 0 }), SIGNAL(s));
				SAME("its value", info.si_value.sival_int, v->queued[s][k] + SPOIL("queue"));
				SAME("its sender", info.si_pid, getpid());
			}
		CHECK(sigtimedwait(&one, &info, &(struct timespec){ 0 }) == -1, "there is one more signal %d", SIGNAL(s));
	}
}

static void check_rest(struct view *v)
{
	struct itimerval interval;
	struct itimerspec left;
	struct rlimit lim;
	char text[PATH_MAX], name[16];

	for (int k = 0; k < 3; k++) {
		MUST(getitimer(k, &interval));
		SAME("interval of an itimer", interval.it_interval.tv_sec, v->interval[k] ? 5 : 0);
		CHECK(interval.it_value.tv_sec <= v->interval[k] && interval.it_value.tv_sec >= v->interval[k] - 100,
		      "itimer %d has %ld s left of %d", k, interval.it_value.tv_sec, v->interval[k]);
	}
	for (int k = 0; k < v->timers; k++) {
		MUST(timer_gettime(timer_ids[k], &left));
		SAME("interval of a timer", left.it_interval.tv_sec, 3 + SPOIL("timer"));
		CHECK(left.it_value.tv_sec > 2900 && left.it_value.tv_sec <= 3000 + k, "a timer");
	}
	SAME("nice", getpriority(PRIO_PROCESS, 0), v->niceness);
	SAME("umask", umask(0), v->mask);
	MUST(getrlimit(RLIMIT_NOFILE, &lim));
	if (v->files)
		SAME("limit of files", lim.rlim_cur, v->files + SPOIL("limit"));
	if (v->name) {
		snprintf(text, sizeof(text), "task %d", v->name);
		MUST(prctl(PR_GET_NAME, name));
		CHECK(!strncmp(text, name, 15), "the name is %s, not %s", name, text);
	}
	if (v->folder) {
		ssize_t n = MUST(readlink("/proc/self/cwd", text, sizeof(text) - 1));

		text[n] = 0;
		snprintf(name, sizeof(name), "/D%d", v->folder);
		CHECK(strstr(text, name), "the folder is %s, not %s", text, name);
	}
}

static void verify(void)
{
	struct view *v = &tasks[me].view;
	char path[64];

	SAME("session", getsid(0), family[me].session + SPOIL("session"));
	SAME("group", getpgrp(), family[me].group);
	if (me) {
		int p = tasks[me].parent;

		SAME("parent", getppid(), family[tasks[p].flags & EXITS ? tasks[p].heir : p].pid);
	}
	for (int i = 0; i < n_slots; i++)
		if (v->has[i])
			check_slot(i, v);
	for (int i = 0; i < n_maps; i++)
		for (int p = 0; v->mapped[i] && p < maps[i].pages; p++) {
			int version = maps[i].kind == 1 && v->page[i][p] != HOLE ? maps[i].page[p] : v->page[i][p];

			if (version == OF_FILE)
				version = files[maps[i].file].page[p];
			if (version != HOLE)
				check_page(mems[i] + p * PAGE, version + SPOIL("page"), "mapping", i, p);
		}
	check_signals(v);
	check_rest(v);
	for (int k = 0; k < v->threads; k++) {
		if (threads[k]->how == 0)
			pthread_mutex_unlock(&threads[k]->gate);
		else if (threads[k]->how == 1)
			MUST(write(threads[k]->wake[1], "", 1));
		else
			__atomic_store_n(&threads[k]->ready, 2, __ATOMIC_SEQ_CST);
		pthread_join(threads[k]->id, NULL);
	}
	for (int t = 1; t < n_tasks; t++) {
		int status;

		if (tasks[t].parent != me || tasks[t].flags & REAPED)
			continue;
		if (tasks[t].flags & ZOMBIE) {
			SAME("a zombie", waitpid(kids[t], &status, WNOHANG), kids[t]);
			SAME("a zombie's status", status, (64 + t) << 8);
			continue;
		}
		if (tasks[t].flags & STOPPED) {
			/* That it is stopped may be told once more: the image format has no place for "was told already". */
			if (waitpid(kids[t], &status, WNOHANG | WUNTRACED))
				SAME("news of a stopped child", status, SIGSTOP << 8 | 0x7f);
			SAME("more news", waitpid(kids[t], &status, WNOHANG | WUNTRACED | WCONTINUED), 0);
			snprintf(path, sizeof(path), "/proc/%d/status", kids[t]);
			CHECK(strstr(guest_slurp(path), "State:\tT"), "task %d is not stopped any more", t);
			MUST(kill(kids[t], SIGCONT));
		}
		guest_child_finish(kids[t]);
	}
}

/* What came to this task because its parent is gone: all of it, and nothing else. */
static void verify_orphans(void)
{
	int wanted = 0, came = 0, status;
	char path[64], list[4096] = "";

	for (int t = 1; t < n_tasks; t++) {
		int p = tasks[t].parent;

		wanted += tasks[p].flags & EXITS && tasks[p].heir == me && !(tasks[t].flags & REAPED);
	}
	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	strncpy(list, guest_slurp(path), sizeof(list) - 1);
	for (char *p = strtok(list, " "); p; p = strtok(NULL, " "), came++) {
		MUST(kill(atoi(p), SIGTERM));
		MUST(waitpid(atoi(p), &status, 0));
		if (!status)
			continue;
		int t = (status >> 8) - 64;

		CHECK(t > 0 && t < n_tasks && tasks[t].flags & ZOMBIE && tasks[tasks[t].parent].flags & EXITS,
		      "an orphan ended with status 0x%x: %.300s", status, guest_slurp(guest_path("why")));
		tasks[t].flags |= REAPED;
	}
	SAME("orphans", came, wanted + SPOIL("orphan"));
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "there are more children than before");
}

static void child(void *arg)
{
	struct word *w = arg;
	int flags = tasks[w->at].flags;

	me = w->at;
	if (flags & SESSION)
		MUST(setsid());
	else if (flags & GROUP)
		MUST(setpgid(0, 0));
	build(w - words + 1);
	if (flags & (EXITS | STOPPED)) {
		CHECK(write(guest_sync, "+", 1) == 1, "nobody waits");
		close(guest_sync);
		guest_sync = -1;
		if (flags & EXITS)
			_exit(64 + me);
		raise(SIGSTOP);
		guest_wait();
	} else {
		guest_child_ready_wait();
	}
	verify();
	verify_orphans();
}

int main(int argc, char **argv)
{
	struct view v = { .mask = 022 };
	int depth = 0, skip;

	guest_init(argc, argv);
	umask(022);
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	for (char *p = strtok(guest_argc > 3 ? strdup(argv[3]) : "", " "); p; p = strtok(NULL, " ")) {
		struct word *w = &words[n_words++];

		CHECK(n_words < WORDS, "too many words");
		w->letter = p[0];
		sscanf(p + 1, "%d,%d", &w->a, &w->b);
		depth += w->letter == '(' ? 1 : w->letter == ')' ? -1 : 0;
		CHECK(depth >= 0, "a ) too many");
	}
	v.niceness = getpriority(PRIO_PROCESS, 0);
	n_tasks = 1;
	tasks[0].leads = tasks[0].reaper = 1;
	family = (void *)MUST(mmap(NULL, sizeof(*family) * TASKS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	skip = think(0, 0, v);
	SAME("words", skip, n_words);
	build(0);
	guest_ready_wait();
	verify();
	verify_orphans();
	guest_pass();
}
