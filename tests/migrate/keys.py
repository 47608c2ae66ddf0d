"""A client of redis that knows what must be there: keys.py fill|work|check HOST PORT FOLDER MEGABYTES

fill: as many keys as make so many megabytes, each value told by its key. work: over one connection, overwrites keys and
reads others back until the file `stop` appears in FOLDER; every answer is compared, and the longest silence is told. check: all
keys have the value last acknowledged."""
import json
import os
import random
import socket
import sys
import time

SIZE = 1000


def value(key, version):
    return (b"%d:%d:" % (key, version)).ljust(SIZE, b"%c" % (97 + (key + version) % 26))


def command(*words):
    out = b"*%d\r\n" % len(words)
    for w in words:
        out += b"$%d\r\n%s\r\n" % (len(w), w)
    return out


class Client:
    def __init__(self, host, port):
        self.s = socket.create_connection((host, int(port)))
        self.s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.f = self.s.makefile("rb")

    def answer(self):
        line = self.f.readline()
        if not line.endswith(b"\r\n"):
            raise SystemExit("FAIL the connection ended: %r" % line)
        if line[:1] == b"$":
            n = int(line[1:])
            return None if n < 0 else self.f.read(n + 2)[:-2]
        if line[:1] in b"+:":
            return line[1:-2]
        raise SystemExit("FAIL redis says %r" % line)

    def all(self, commands):
        self.s.sendall(b"".join(commands))
        return [self.answer() for _ in commands]


def main():
    verb, host, port, folder, megabytes = sys.argv[1:6]
    keys = int(megabytes) * 1000
    c = Client(host, port)
    versions = os.path.join(folder, "versions")
    if verb == "fill":
        for at in range(0, keys, 500):
            batch = range(at, min(at + 500, keys))
            c.all([command(b"SET", b"k%d" % k, value(k, 0)) for k in batch])
    elif verb == "work":
        rng = random.Random(1)
        known = {}
        longest = done = 0
        open(os.path.join(folder, "working"), "w").close()
        while not os.path.exists(os.path.join(folder, "stop")):
            before = time.monotonic()
            writes = [rng.randrange(keys) for _ in range(4)]
            reads = [rng.randrange(keys) for _ in range(12)]
            told = []
            for k in writes:
                known[k] = known.get(k, 0) + 1
                told.append(command(b"SET", b"k%d" % k, value(k, known[k])))
            told += [command(b"GET", b"k%d" % k) for k in reads]
            answers = c.all(told)
            for a in answers[:4]:
                if a != b"OK":
                    raise SystemExit("FAIL SET answers %r" % a)
            for k, a in zip(reads, answers[4:]):
                if a != value(k, known.get(k, 0)):
                    raise SystemExit("FAIL key %d has %r, not version %d" % (k, a and a[:20], known.get(k, 0)))
            longest = max(longest, time.monotonic() - before)
            done += 16
            if os.path.exists(os.path.join(folder, "mark")):
                os.rename(os.path.join(folder, "mark"), os.path.join(folder, "marked"))
                print("longest silence %.0f ms, %d answers right" % (longest * 1000, done), flush=True)
                longest = 0
            time.sleep(0.001)
        with open(versions, "w") as f:
            json.dump(known, f)
        print("all %d answers right" % done, flush=True)
    elif verb == "check":
        known = {}
        if os.path.exists(versions):
            known = {int(k): v for k, v in json.load(open(versions)).items()}
        for at in range(0, keys, 500):
            batch = range(at, min(at + 500, keys))
            for k, a in zip(batch, c.all([command(b"GET", b"k%d" % k) for k in batch])):
                if a != value(k, known.get(k, 0)):
                    raise SystemExit("FAIL key %d has %r" % (k, a and a[:20]))
        print("%d keys right" % keys, flush=True)


main()
