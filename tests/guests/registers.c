/*
 * Registers: a thread fills the general, SSE, AVX, AVX-512, mask and x87 registers and both control words, spins on a
 * flag in memory without touching any of them, and stores them again. fs and gs bases are checked beside.
 */
#include "guest.h"
#include <asm/prctl.h>
#include <cpuid.h>

struct image {
	uint64_t gpr[8]; /* rbx r8-r13 r15 */
	uint8_t vec[32][64];
	uint64_t mask[8];
	uint8_t x87[8][16];
	uint32_t mxcsr;
	uint16_t fcw, pad;
	uint64_t flags;
} __attribute__((aligned(64)));

static struct image in, out;
static volatile int ready, go;
static int wide; /* vector registers are 16, 32 or 64 bytes */

#define V16(op, r, at) op(r, 0) op(r, 1) op(r, 2) op(r, 3) op(r, 4) op(r, 5) op(r, 6) op(r, 7) op(r, 8) op(r, 9)       \
	op(r, 10) op(r, 11) op(r, 12) op(r, 13) op(r, 14) op(r, 15)
#define V32(op, r) V16(op, r, 0) op(r, 16) op(r, 17) op(r, 18) op(r, 19) op(r, 20) op(r, 21) op(r, 22) op(r, 23)        \
	op(r, 24) op(r, 25) op(r, 26) op(r, 27) op(r, 28) op(r, 29) op(r, 30) op(r, 31)
#define STR_(x) #x
#define STR(x) STR_(x)
#define XLOAD(r, n) "movdqu 64+64*" STR(n) "(%[" r "]), %%xmm" STR(n) "\n"
#define XSAVE_(r, n) "movdqu %%xmm" STR(n) ", 64+64*" STR(n) "(%[" r "])\n"
#define YLOAD(r, n) "vmovdqu 64+64*" STR(n) "(%[" r "]), %%ymm" STR(n) "\n"
#define YSAVE(r, n) "vmovdqu %%ymm" STR(n) ", 64+64*" STR(n) "(%[" r "])\n"
#define ZLOAD(r, n) "vmovdqu64 64+64*" STR(n) "(%[" r "]), %%zmm" STR(n) "\n"
#define ZSAVE(r, n) "vmovdqu64 %%zmm" STR(n) ", 64+64*" STR(n) "(%[" r "])\n"
#define KLOAD(r, n) "kmovq 2112+8*" STR(n) "(%[" r "]), %%k" STR(n) "\n"
#define KSAVE(r, n) "kmovq %%k" STR(n) ", 2112+8*" STR(n) "(%[" r "])\n"
#define K8(op, r) op(r, 0) op(r, 1) op(r, 2) op(r, 3) op(r, 4) op(r, 5) op(r, 6) op(r, 7)
/* Pushes 7 first so that st(0) is entry 0. */
#define FLOAD "fninit\n"                                                                                               \
	"fldt 2176+16*7(%[i])\nfldt 2176+16*6(%[i])\nfldt 2176+16*5(%[i])\nfldt 2176+16*4(%[i])\n"                     \
	"fldt 2176+16*3(%[i])\nfldt 2176+16*2(%[i])\nfldt 2176+16*1(%[i])\nfldt 2176+16*0(%[i])\n"                     \
	"ldmxcsr 2304(%[i])\nfldcw 2308(%[i])\n"
#define FSAVE_ "fnstcw 2308(%[o])\nstmxcsr 2304(%[o])\n"                                                               \
	"fstpt 2176+16*0(%[o])\nfstpt 2176+16*1(%[o])\nfstpt 2176+16*2(%[o])\nfstpt 2176+16*3(%[o])\n"                 \
	"fstpt 2176+16*4(%[o])\nfstpt 2176+16*5(%[o])\nfstpt 2176+16*6(%[o])\nfstpt 2176+16*7(%[o])\nfninit\n"
#define GLOAD "movq 0(%[i]), %%rbx\nmovq 8(%[i]), %%r8\nmovq 16(%[i]), %%r9\nmovq 24(%[i]), %%r10\n"                   \
	"movq 32(%[i]), %%r11\nmovq 40(%[i]), %%r12\nmovq 48(%[i]), %%r13\nmovq 56(%[i]), %%r15\n"
/* Carry, parity, zero, sign, direction and overflow flags set; then spin. cmp would spoil flags: jrcxz does not. */
#define SPIN "pushfq\norq $0xcc5, (%%rsp)\npopfq\n"                                                                    \
	"movl $1, (%[rdy])\n1:\nmovl (%[go]), %%ecx\npause\njrcxz 1b\npushfq\npopq 2312(%[o])\ncld\n"
#define GSAVE "movq %%rbx, 0(%[o])\nmovq %%r8, 8(%[o])\nmovq %%r9, 16(%[o])\nmovq %%r10, 24(%[o])\n"                   \
	"movq %%r11, 32(%[o])\nmovq %%r12, 40(%[o])\nmovq %%r13, 48(%[o])\nmovq %%r15, 56(%[o])\n"
#define ARGS : : [i] "D"(&in), [o] "S"(&out), [rdy] "d"(&ready), [go] "a"(&go)
#define CLOBBER "rbx", "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r15", "memory", "cc"

_Static_assert(offsetof(struct image, vec) == 64 && offsetof(struct image, mask) == 2112 &&
	       offsetof(struct image, x87) == 2176 && offsetof(struct image, mxcsr) == 2304 &&
	       offsetof(struct image, fcw) == 2308 && offsetof(struct image, flags) == 2312, "offsets in the assembly");

static void *spinner(UNUSED void *arg)
{
	/* The stack below is used by pushfq: keep clear of the red zone. */
	if (wide == 64)
		__asm__ volatile("sub $256, %%rsp\n" V32(ZLOAD, "i") K8(KLOAD, "i") FLOAD GLOAD SPIN GSAVE FSAVE_ K8(KSAVE, "o")
				 V32(ZSAVE, "o") "vzeroupper\nadd $256, %%rsp\n" ARGS : CLOBBER);
	else if (wide == 32)
		__asm__ volatile("sub $256, %%rsp\n" V16(YLOAD, "i", 0) FLOAD GLOAD SPIN GSAVE FSAVE_ V16(YSAVE, "o", 0)
				 "vzeroupper\nadd $256, %%rsp\n" ARGS : CLOBBER);
	else
		__asm__ volatile("sub $256, %%rsp\n" V16(XLOAD, "i", 0) FLOAD GLOAD SPIN GSAVE FSAVE_ V16(XSAVE_, "o", 0)
				 "add $256, %%rsp\n" ARGS : CLOBBER);
	return NULL;
}

static unsigned long gs_block[2] = { 0, 0x1234 };

int main(int argc, char **argv)
{
	unsigned a, b, c, d, lo, hi;
	unsigned long fs, gs, fs2, gs2;
	pthread_t t;

	guest_init(argc, argv);
	wide = 16;
	__cpuid(1, a, b, c, d);
	if (c & bit_OSXSAVE) {
		__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
		if ((lo & 6) == 6 && (c & bit_AVX))
			wide = 32;
		__cpuid_count(7, 0, a, b, c, d);
		if (wide == 32 && (lo & 0xe0) == 0xe0 && (b & bit_AVX512F) && (b & bit_AVX512BW))
			wide = 64;
	}
	guest_fill(&in, sizeof(in), 0xabcd);
	for (int i = 0; i < 8; i++) {
		long double v = 1.25L * (i + 1) * (i & 1 ? -1 : 1);

		memset(in.x87[i], 0, 16);
		memcpy(in.x87[i], &v, 10);
	}
	/* Round down, flush to zero, a sticky inexact flag; x87: round up, double precision. All exceptions masked. */
	in.mxcsr = 0x1f80 | 0x2000 | 0x8000 | 0x20;
	in.fcw = 0x0a7f;
	MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, (unsigned long)gs_block));
	MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs));
	MUST(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs));
	CHECK(!pthread_create(&t, NULL, spinner, NULL), "no thread");
	while (!ready)
		usleep(100);
	guest_ready_wait();
	go = 1;
	pthread_join(t, NULL);
	if (SPOIL("general"))
		out.gpr[3]++;
	if (SPOIL("vector"))
		out.vec[15][wide - 1]++;
	if (SPOIL("x87"))
		out.x87[7][2]++;
	if (SPOIL("mxcsr"))
		out.mxcsr = 0x1f80;
	if (SPOIL("fcw"))
		out.fcw = 0x37f;
	if (SPOIL("eflags"))
		out.flags &= ~0x400ul;
	if (SPOIL("gs"))
		MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, 0ul));
	for (int i = 0; i < 8; i++)
		CHECK(in.gpr[i] == out.gpr[i], "general register %d is 0x%lx, not 0x%lx", i, out.gpr[i], in.gpr[i]);
	for (int i = 0; i < (wide == 64 ? 32 : 16); i++)
		CHECK(!memcmp(in.vec[i], out.vec[i], wide), "vector register %d (%d bytes) changed", i, wide);
	for (int i = 0; wide == 64 && i < 8; i++)
		CHECK(in.mask[i] == out.mask[i], "mask register %d changed", i);
	for (int i = 0; i < 8; i++)
		CHECK(!memcmp(in.x87[i], out.x87[i], 10), "x87 register %d changed", i);
	SAME("mxcsr", out.mxcsr, in.mxcsr);
	SAME("x87 control word", out.fcw, in.fcw);
	SAME("flags", out.flags & 0xcd5, 0xcc5);
	MUST(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs2));
	MUST(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs2));
	SAME("fs base", fs2, fs);
	SAME("gs base", gs2, gs);
	guest_pass();
}
