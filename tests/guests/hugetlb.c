/* Huge pages from the pool: private and shared anonymous, and a memfd; only where the pool has pages. */
#include "guest.h"

#define HUGE (2ul << 20)

int main(int argc, char **argv)
{
	char *priv, *shared, *file;
	int fd;

	guest_init(argc, argv);
	priv = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	shared = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	fd = memfd_create("huge", MFD_HUGETLB);
	if (priv == MAP_FAILED || shared == MAP_FAILED || fd < 0 || ftruncate(fd, HUGE))
		guest_skip("no free huge pages in the pool (vm.nr_hugepages)");
	file = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (file == MAP_FAILED)
		guest_skip("no free huge pages in the pool (vm.nr_hugepages)");
	guest_fill(priv, HUGE, 1);
	guest_fill(shared, HUGE, 2);
	guest_fill(file, HUGE, 3);
	guest_ready_wait();
	if (SPOIL("private"))
		priv[HUGE - 1] ^= 1;
	if (SPOIL("shared"))
		shared[HUGE - 1] ^= 1;
	if (SPOIL("file"))
		file[HUGE - 1] ^= 1;
	CHECK(guest_filled(priv, HUGE, 1), "private huge page changed");
	CHECK(guest_filled(shared, HUGE, 2), "shared huge page changed");
	CHECK(guest_filled(file, HUGE, 3), "huge page of the memfd changed");
	CHECK(guest_vmflag(priv, "ht") && guest_vmflag(shared, "ht") && guest_vmflag(file, "ht"), "not huge any more");
	guest_pass();
}
