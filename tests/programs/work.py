"""Threads that hash, a database that is written and read, children that talk over pipes; all at once."""
import hashlib
import queue
import sqlite3
import subprocess
import sys
import threading

TURNS = int(sys.argv[1])
results = {}


def hashing(n):
    h = hashlib.sha256()
    block = bytes([n]) * (1 << 20)
    for turn in range(TURNS * 3):
        h.update(block)
        block = h.digest() * (1 << 15)
    results[f"hash {n}"] = h.hexdigest()


def base(path):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma journal_mode=" + ("wal" if path.endswith("wal.db") else "delete"))
    db.execute("create table t (k integer primary key, v text, n integer)")
    for turn in range(TURNS):
        db.execute("begin immediate")
        for k in range(200):
            db.execute("insert into t (v, n) values (?, ?)", (hashlib.md5(b"%d %d" % (turn, k)).hexdigest(), k * turn))
        if turn % 5 == 4:
            db.execute("rollback")
        else:
            db.execute("update t set n = n + 1 where k % 7 = ?", (turn % 7,))
            db.execute("commit")
    results[path] = db.execute("select count(*), sum(n), max(v) from t").fetchone()
    results[path + " check"] = db.execute("pragma integrity_check").fetchone()
    db.close()


def children():
    h = hashlib.sha256()
    for turn in range(TURNS):
        p = subprocess.Popen(["sh", "-c", "while read x; do echo $((x * x)); done; exit 3"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
        got, _ = p.communicate("".join(f"{turn + i}\n" for i in range(500)).encode())
        h.update(got + b"%d" % p.returncode)
    results["children"] = h.hexdigest()


def talk():
    """One child for the whole time: a line there, a line back."""
    p = subprocess.Popen([sys.executable, "-u", "-c", "import sys\nfor l in sys.stdin: print(int(l) * 3)"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    total = 0
    for n in range(TURNS * 100):
        p.stdin.write(f"{n}\n")
        total += int(p.stdout.readline())
    p.stdin.close()
    results["talk"] = (total, p.wait())


def relay(inbox, outbox):
    while (item := inbox.get(timeout=60)) is not None:
        outbox.put(item + 1)
    outbox.put(None)


def ring():
    queues = [queue.Queue(4) for _ in range(6)]
    threads = [threading.Thread(target=relay, args=(queues[i], queues[i + 1])) for i in range(5)]
    for t in threads:
        t.start()
    feeder = threading.Thread(target=lambda: [queues[0].put(x) for x in [*range(TURNS * 40), None]])
    feeder.start()
    total = 0
    while (item := queues[5].get(timeout=60)) is not None:
        total += item
    results["ring"] = total


jobs = [threading.Thread(target=hashing, args=(n,)) for n in range(3)]
jobs += [threading.Thread(target=base, args=(path,)) for path in ("plain.db", "wal.db")]
jobs += [threading.Thread(target=f) for f in (children, talk, ring)]
for job in jobs:
    job.start()
open("ready", "w").close()
for job in jobs:
    job.join()
with open("out", "w") as out:
    for key in sorted(results):
        print(key, results[key], file=out)
