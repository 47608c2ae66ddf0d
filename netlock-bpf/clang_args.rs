// How clang makes the lock's object, from the folder of the crate.
[
    "-target",
    "bpf",
    "-O2",
    "-Wall",
    "-c",
    "src/lock.bpf.c",
]
