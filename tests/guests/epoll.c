/* epoll: events, data, edge and one-shot, nested instances, a target that is also known by another number. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static void add(int ep, int fd, unsigned events, uint64_t data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };

	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev));
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The lines of fdinfo that name targets, sorted: the kernel's order is that of its pointers. */
static void targets(int ep, char *out, size_t size)
{
	char path[64], *save = NULL, *text, *line[16];
	unsigned fd, events;
	unsigned long data;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", ep);
	text = strdup(guest_slurp(path));
	*out = 0;
	for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save))
		/*
		 * Behind the data stand position, inode and device, which may change. epoll_ctl() always adds EPOLLERR and
		 * EPOLLHUP, which a spent one-shot has lost: no caller can set that state again.
		 */
		if (n < 16 && sscanf(l, "tfd: %u events: %x data: %lx", &fd, &events, &data) == 3)
			MUST(asprintf(&line[n++], "%u: events 0x%x data 0x%lx", fd, events & ~(EPOLLERR | EPOLLHUP), data));
	qsort(line, n, sizeof(*line), by_text);
	for (int i = 0; i < n; i++) {
		strncat(out, line[i], size - strlen(out) - 1);
		strncat(out, "\n", size - strlen(out) - 1);
		free(line[i]);
	}
	free(text);
}

int main(int argc, char **argv)
{
	char was[4096], now[4096];
	struct epoll_event ev[8];
	int inner, outer, p[2], efd, once;

	guest_init(argc, argv);
	inner = MUST(epoll_create1(0));
	outer = MUST(epoll_create1(EPOLL_CLOEXEC));
	MUST(pipe(p));
	efd = MUST(eventfd(1, 0));
	once = MUST(eventfd(1, 0));
	add(inner, p[0], EPOLLIN, 0x1122334455667788ull);
	add(inner, p[1], EPOLLOUT | EPOLLET, 2);
	add(inner, once, EPOLLIN | EPOLLONESHOT, 3);
	add(outer, inner, EPOLLIN, 4);
	add(outer, efd, EPOLLIN | EPOLLRDHUP, 5);
	/* Spend the one-shot and the edge. */
	SAME("events", epoll_wait(inner, ev, 8, 0), 2);
	targets(inner, was, sizeof(was));
	guest_ready_wait();
	if (SPOIL("target"))
		epoll_ctl(inner, EPOLL_CTL_DEL, p[0], NULL);
	if (SPOIL("data"))
		epoll_ctl(outer, EPOLL_CTL_MOD, efd, &(struct epoll_event){ .events = EPOLLIN, .data.u64 = 6 });
	if (SPOIL("oneshot"))
		epoll_ctl(inner, EPOLL_CTL_MOD, once, &(struct epoll_event){ .events = EPOLLIN, .data.u64 = 3 });
	if (SPOIL("nested"))
		epoll_ctl(outer, EPOLL_CTL_DEL, inner, NULL);
	targets(inner, now, sizeof(now));
	CHECK(!strcmp(was, now), "targets are\n%snot\n%s", now, was);
	SAME("written", write(p[1], "x", 1), 1);
	/* The edge may be reported again after a restore: only the others are exact. */
	{
		int n = epoll_wait(inner, ev, 8, 1000), seen = 0;

		for (int i = 0; i < n; i++) {
			CHECK(ev[i].data.u64 != 3, "the spent one-shot fires again");
			seen += ev[i].data.u64 == 0x1122334455667788ull && ev[i].events == EPOLLIN;
		}
		SAME("event of the pipe", seen, 1);
	}
	{
		int n = epoll_wait(outer, ev, 8, 1000), seen = 0;

		for (int i = 0; i < n; i++)
			seen += ev[i].data.u64 == 4 ? 1 : ev[i].data.u64 == 5 ? 2 : 100;
		SAME("events of the outer one", seen, 3);
	}
	SAME("close-on-exec", fcntl(outer, F_GETFD), FD_CLOEXEC);
	guest_pass();
}
