/* System V message queues of an own IPC namespace: messages with their types, lengths and order; limits; an empty queue. */
#include "guest.h"
#include <sys/ipc.h>
#include <sys/msg.h>

struct message {
	long type;
	char text[5000];
};

static struct message m;

static void send_one(int id, long type, size_t len, unsigned seed)
{
	m.type = type;
	guest_fill(m.text, len, seed);
	MUST(msgsnd(id, &m, len, IPC_NOWAIT));
}

static void want(int id, long asked, long type, size_t len, unsigned seed)
{
	ssize_t n = msgrcv(id, &m, sizeof(m.text), asked, IPC_NOWAIT);

	CHECK(n >= 0, "a message of type %ld: %s", type, strerror(errno));
	SAME("length", n, len);
	SAME("type", m.type, type);
	CHECK(guest_filled(m.text, len, seed), "a message of type %ld has changed", type);
}

int main(int argc, char **argv)
{
	struct msqid_ds ds;
	int id, empty, gone;

	guest_init(argc, argv);
	guest_unshare(CLONE_NEWIPC);
	gone = MUST(msgget(IPC_PRIVATE, 0600));
	id = MUST(msgget(0x4d53, IPC_CREAT | IPC_EXCL | 0620));
	empty = MUST(msgget(0x4d54, IPC_CREAT | IPC_EXCL | 0666));
	MUST(msgctl(gone, IPC_RMID, NULL));
	send_one(id, 7, 13, 1);
	send_one(id, 3, 4096, 2);
	send_one(id, 7, 0, 3);
	send_one(id, LONG_MAX, 8, 4);
	MUST(msgctl(empty, IPC_STAT, &ds));
	ds.msg_qbytes = 5555;
	MUST(msgctl(empty, IPC_SET, &ds));
	guest_ready_wait();
	if (SPOIL("order")) {
		msgrcv(id, &m, sizeof(m.text), 7, IPC_NOWAIT);
		msgsnd(id, &m, 13, IPC_NOWAIT);
	}
	if (SPOIL("content"))
		msgrcv(id, &m, sizeof(m.text), 3, IPC_NOWAIT), m.text[5] ^= 1, msgsnd(id, &m, 4096, IPC_NOWAIT);
	if (SPOIL("more"))
		send_one(empty, 1, 1, 9);
	SAME("id behind the key", msgget(0x4d53, 0), id);
	MUST(msgctl(id, IPC_STAT, &ds));
	SAME("messages", ds.msg_qnum, 4);
	SAME("bytes", ds.__msg_cbytes, 13 + 4096 + 8);
	SAME("mode", ds.msg_perm.mode, 0620);
	want(id, 0, 7, 13, 1);
	want(id, 3, 3, 4096, 2);
	want(id, 0, 7, 0, 3);
	want(id, 0, LONG_MAX, 8, 4);
	MUST(msgctl(empty, IPC_STAT, &ds));
	SAME("messages of the empty one", ds.msg_qnum, 0);
	SAME("its limit", ds.msg_qbytes, 5555);
	CHECK(msgctl(gone, IPC_STAT, &ds) == -1, "a removed queue is back");
	guest_pass();
}
