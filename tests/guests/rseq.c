/*
 * Restartable sequences: the registration glibc made for each thread still works (cpu_id follows the thread), and a
 * thread that is frozen inside of a critical section continues at its abort handler.
 */
#include "guest.h"

struct area {
	uint32_t cpu_id_start, cpu_id;
	uint64_t cs;
	uint32_t flags;
};

/* glibc's symbols: where the area is, counted from the thread pointer. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

static struct area *area(void)
{
	return (struct area *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

static volatile int inside, go, aborted;

/* Enters a critical section and spins in it until `go`. Leaves with 1 when the kernel aborted it, 0 when not. */
static int critical(struct area *a)
{
	int was_aborted;

	__asm__ volatile(
		".pushsection .data.rseq_cs, \"aw\"\n.balign 32\n"
		"7: .long 0, 0\n.quad 2f, 3f - 2f, 4f\n.popsection\n"
		"1: leaq 7b(%%rip), %%rax\nmovq %%rax, %[cs]\n"
		"2: movl $1, %[in]\n"
		"5: pause\nmovl %[go], %%eax\ntestl %%eax, %%eax\njz 5b\n"
		"3: xorl %[res], %[res]\njmp 6f\n"
		/* ud1 with the signature glibc registered, then the handler */
		".byte 0x0f, 0xb9, 0x3d\n.long 0x53053053\n"
		"4: movl $1, %[res]\n"
		"6: movq $0, %[cs]\n"
		: [res] "=&r"(was_aborted), [cs] "+m"(a->cs), [in] "+m"(inside)
		: [go] "m"(go)
		: "rax", "memory", "cc");
	return was_aborted;
}

static void *spinner(UNUSED void *arg)
{
	/* Every preemption aborts too: go in again until the time has come. */
	while (!go)
		aborted += critical(area());
	return NULL;
}

static void check_cpu(void)
{
	cpu_set_t one;

	for (int i = 0; i < 2; i++) {
		CPU_ZERO(&one);
		CPU_SET(i, &one);
		if (sched_setaffinity(0, sizeof(one), &one))
			continue;
		SAME("cpu_id of the rseq area", area()->cpu_id, i);
	}
}

int main(int argc, char **argv)
{
	pthread_t t;

	guest_init(argc, argv);
	if (!&__rseq_size || !__rseq_size || (int)area()->cpu_id < 0)
		guest_skip("glibc registered no rseq area");
	CHECK(!pthread_create(&t, NULL, spinner, NULL), "no thread");
	while (!inside)
		usleep(100);
	guest_ready_wait();
	go = 1;
	pthread_join(t, NULL);
	if (SPOIL("unregistered"))
		MUST(syscall(SYS_rseq, area(), 32, 1, 0x53053053));
	check_cpu();
	/* Registering the same area again is EBUSY when the registration is there; other values EINVAL. */
	CHECK(syscall(SYS_rseq, area(), 32, 0, 0x53053053) == -1 && errno == EBUSY, "the area is not registered (%s)", strerror(errno));
	guest_pass();
}
