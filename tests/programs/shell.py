"""A person at a terminal: runs bash with job control on a pty of its own, types at it, keeps what matters in `out`."""
import os
import pty
import re
import sys

pid, master = pty.fork()
if pid == 0:
    os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"],
               {"PATH": os.environ["PATH"], "PS1": "@@> ", "TERM": "dumb", "HOME": os.getcwd(), "HISTFILE": ""})
seen = b""


def until(pattern):
    """Reads on to the first match, drops everything up to its end, gives the text before it."""
    global seen
    while not (m := re.search(pattern, seen)):
        got = os.read(master, 4096)
        if not got:
            sys.exit("the terminal was closed")
        seen += got
    text, seen = seen[:m.start()], seen[m.end():]
    return text.decode().replace("\r", "")


def typed(line):
    """Types a line; gives what bash says before its next prompt."""
    os.write(master, line.encode() + b"\n")
    return until(rb"@@> ")


def asked(words):
    """What the words print. Bash may tell of jobs that ended at any time, hence the brackets."""
    return re.search(r"<<(.*)>>", typed(f'echo "<<$({words})>>"'), re.S)[1].strip().replace("\n", " ")


out = open("out", "w")
until(rb"@@> ")
typed("stty -echo")
typed("count() { for i in $(seq $2); do echo $((i * $1)); sleep 0.0$((i % 3 + 1)); done; }")
open("ready", "w").close()
for turn in range(int(sys.argv[1])):
    typed(f"count 3 60 | awk '{{ s += $1 }} END {{ print \"sum\", s }}' > sum-{turn}-a &")
    typed(f"(count 5 40; count 7 20) | sort -n | sha256sum > sum-{turn}-b &")
    # A pipeline in front of the terminal, which is stopped and taken up again, twice.
    os.write(master, b"count 2 30 | cat\n")
    for stop, go_on in ((10, "fg"), (30, "bg; wait %%")):
        until(rb"\n%d\r\n" % stop)
        os.write(master, b"\x1a")
        until(rb"Stopped[^\n]*\n")
        until(rb"@@> ")
        out.write(f"{turn}: {asked('jobs -s | wc -l')} stopped at {stop}\n")
        os.write(master, go_on.encode() + b"\n")
    until(rb"\n60\r\n")
    until(rb"@@> ")
    typed("wait")
    out.write(f"{turn}: {asked('jobs | wc -l')} jobs left\n")
    for part in "ab":
        out.write(f"{turn}: {part} {open(f'sum-{turn}-{part}').read()}")
    out.write(f"{turn}: {asked('stty size; tty | cut -c1-8; ps -o tty= -p $$ | cut -c1-4')}\n")
    out.flush()
os.write(master, b"exit 7\n")
status = os.waitpid(pid, 0)[1]
out.write(f"bash ended with {os.waitstatus_to_exitcode(status)}\n")
