/* Host and domain name of an own UTS namespace. */
#include "guest.h"
#include <sys/utsname.h>

int main(int argc, char **argv)
{
	struct utsname u;

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWUTS);
	MUST(sethostname("frozen-lake", 11));
	MUST(setdomainname("ice.example", 11));
	guest_ready_wait();
	if (SPOIL("host"))
		sethostname("thawed", 6);
	if (SPOIL("domain"))
		setdomainname("", 0);
	uname(&u);
	CHECK(!strcmp(u.nodename, "frozen-lake"), "host name is %s", u.nodename);
	CHECK(!strcmp(u.domainname, "ice.example"), "domain name is %s", u.domainname);
	guest_pass();
}
