"""A typical heap of CPython: records as a service holds them. heap.py MIB FILE

Writes "ready" to FILE when it stands. At SIGTERM it checks it, writes "ok" or what is wrong to FILE, and ends.
"""
import os
import random
import signal
import sys

mib, report = int(sys.argv[1]), sys.argv[2]
os.setsid()
words = "order customer address street total item price tax paid open closed note shipped returned".split()
rng = random.Random(7)


def say(text):
    with open(report + ".part", "w") as f:
        f.write(text)
    os.rename(report + ".part", report)


def record(i):
    name = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(8))
    return {
        "id": i,
        "name": name,
        "mail": name + "@example.org",
        "score": rng.random(),
        "tags": [rng.choice(words) for _ in range(4)],
        "note": " ".join(rng.choice(words) for _ in range(12)),
        "items": [{"sku": rng.randrange(1 << 30), "n": j, "price": rng.randrange(10000) / 100} for j in range(3)],
    }


def mark():
    return sum(hash((i, r["name"], r["score"], r["note"], r["items"][2]["sku"])) for i, r in heap.items()) & (2**64 - 1)


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096 >> 20


heap = {}
while resident() < mib:
    for _ in range(2000):
        heap[len(heap)] = record(len(heap))
before = mark()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
say("ready")
signal.sigwait([signal.SIGTERM])
say("ok" if mark() == before else "the heap differs")
