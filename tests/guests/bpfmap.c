/*
 * Maps of eBPF programs: a hash with a name, an array that is frozen, a trie, an LRU hash; one of them open twice, for reading
 * only the second time, and shared with a child. With parameter 1 only what CRIU carries: hash and array, each open once.
 */
#include "guest.h"
#include <linux/bpf.h>

#define ELEMENTS 3000

static int bpf(int cmd, union bpf_attr *a)
{
	return syscall(SYS_bpf, cmd, a, sizeof(*a));
}

static int make(const char *name, int type, int key, int value, int n, int flags)
{
	union bpf_attr a = { .map_type = type, .key_size = key, .value_size = value, .max_entries = n, .map_flags = flags };

	strcpy(a.map_name, name);
	return bpf(BPF_MAP_CREATE, &a);
}

static int element(int cmd, int fd, void *key, void *value)
{
	union bpf_attr a = { .map_fd = fd, .key = (uintptr_t)key, .value = (uintptr_t)value };

	return bpf(cmd, &a);
}

static struct bpf_map_info told(int fd)
{
	struct bpf_map_info i = {};
	union bpf_attr a = { .info = { .bpf_fd = fd, .info_len = sizeof(i), .info = (uintptr_t)&i } };

	MUST(bpf(BPF_OBJ_GET_INFO_BY_FD, &a));
	return i;
}

static void same(const char *what, int fd, const struct bpf_map_info *was)
{
	struct bpf_map_info is = told(fd);

	SAME(what, is.type, was->type);
	SAME(what, is.key_size, was->key_size);
	SAME(what, is.value_size, was->value_size);
	SAME(what, is.max_entries, was->max_entries);
	SAME(what, is.map_flags, was->map_flags);
	CHECK(!strcmp(is.name, was->name), "%s is named %s, not %s", what, is.name, was->name);
}

static int hash;

static void child(UNUSED void *arg)
{
	uint64_t value[2];
	uint32_t key = 1;

	guest_child_ready_wait();
	MUST(element(BPF_MAP_LOOKUP_ELEM, hash, &key, value));
	SAME("value the child sees", value[0], 77);
}

int main(int argc, char **argv)
{
	struct { uint32_t bits; uint8_t addr[4]; } prefix = { 8, { 10 } }, in_it = { 32, { 10, 1, 2, 3 } };
	struct bpf_map_info was[4];
	uint64_t value[2], small;
	uint32_t key;
	int array, trie, lru, again, more;
	pid_t pid;

	guest_init(argc, argv);
	more = !guest_arg(0, 0);
	hash = make("guest_hash", BPF_MAP_TYPE_HASH, 4, 16, 5000, BPF_F_NO_PREALLOC);
	if (hash < 0)
		guest_skip("no maps here (CAP_BPF)");
	array = MUST(make("guest_array", BPF_MAP_TYPE_ARRAY, 4, 8, 10, BPF_F_RDONLY_PROG));
	trie = more ? MUST(make("guest_trie", BPF_MAP_TYPE_LPM_TRIE, 8, 8, 16, BPF_F_NO_PREALLOC)) : -1;
	lru = more ? MUST(make("", BPF_MAP_TYPE_LRU_HASH, 4, 8, 100, 0)) : -1;
	for (key = 1; key <= ELEMENTS; key++) {
		value[0] = key * 3ULL;
		value[1] = ~value[0];
		MUST(element(BPF_MAP_UPDATE_ELEM, hash, &key, value));
	}
	key = 7;
	small = 0x1234567890ULL;
	MUST(element(BPF_MAP_UPDATE_ELEM, array, &key, &small));
	MUST(bpf(BPF_MAP_FREEZE, &(union bpf_attr){ .map_fd = array }));
	was[0] = told(hash);
	was[1] = told(array);
	again = hash;
	if (more) {
		MUST(element(BPF_MAP_UPDATE_ELEM, trie, &prefix, &small));
		MUST(element(BPF_MAP_UPDATE_ELEM, lru, &key, &small));
		was[2] = told(trie);
		was[3] = told(lru);
		again = MUST(bpf(BPF_MAP_GET_FD_BY_ID, &(union bpf_attr){ .map_id = was[0].id, .open_flags = BPF_F_RDONLY }));
	}
	pid = guest_child(child, NULL);

	guest_ready_wait();

	if (SPOIL("name"))
		hash = make("other", BPF_MAP_TYPE_HASH, 4, 16, 5000, BPF_F_NO_PREALLOC);
	same("the hash", hash, &was[0]);
	if (SPOIL("array"))
		array = make("guest_array", BPF_MAP_TYPE_ARRAY, 4, 8, 10, BPF_F_RDONLY_PROG);
	same("the array", array, &was[1]);
	if (more) {
		same("the trie", trie, &was[2]);
		same("the LRU hash", lru, &was[3]);
	}
	key = 1200;
	if (SPOIL("value")) {
		value[0] = 1;
		MUST(element(BPF_MAP_UPDATE_ELEM, hash, &key, value));
	}
	for (key = 1; key <= ELEMENTS; key++) {
		MUST(element(BPF_MAP_LOOKUP_ELEM, hash, &key, value));
		SAME("value in the hash", value[0], key * 3ULL);
		SAME("its other half", value[1], ~value[0]);
	}
	CHECK(element(BPF_MAP_LOOKUP_ELEM, hash, &key, value) < 0 && errno == ENOENT, "the hash has more than it had");
	key = 7;
	small = 0;
	MUST(element(BPF_MAP_LOOKUP_ELEM, array, &key, &small));
	SAME("value in the array", small, 0x1234567890ULL);
	CHECK(element(BPF_MAP_UPDATE_ELEM, array, &key, &small) < 0 && errno == EPERM, "the array is not frozen");
	if (SPOIL("trie"))
		MUST(element(BPF_MAP_DELETE_ELEM, trie, &prefix, NULL));
	if (SPOIL("lru"))
		MUST(element(BPF_MAP_DELETE_ELEM, lru, &key, NULL));
	if (more) {
		MUST(element(BPF_MAP_LOOKUP_ELEM, trie, &in_it, &small));
		SAME("value in the trie", small, 0x1234567890ULL);
		MUST(element(BPF_MAP_LOOKUP_ELEM, lru, &key, &small));
		SAME("value in the LRU hash", small, 0x1234567890ULL);
	}
	/* two open files, one map */
	if (SPOIL("mode"))
		again = hash;
	key = 1;
	value[0] = 77;
	CHECK(!more || (element(BPF_MAP_UPDATE_ELEM, again, &key, value) < 0 && errno == EPERM), "the second open file can write");
	MUST(element(BPF_MAP_UPDATE_ELEM, hash, &key, value));
	if (SPOIL("shared"))
		again = trie;
	SAME("map of the second open file", told(again).id, told(hash).id);
	MUST(element(BPF_MAP_LOOKUP_ELEM, again, &key, value));
	SAME("value through the second open file", value[0], 77);
	guest_child_finish(pid);
	guest_pass();
}
