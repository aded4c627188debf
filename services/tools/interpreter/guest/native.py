"""The first program inside bubblewrap: `native.py SETTINGS`, in JSON. It gives up what is left of its rights, then
runs the jobs of one session, each a line with its number on the first input, and answers each with a line on the
descriptor that the settings name.
"""

import json
import os
import signal
import sys

sys.path.insert(0, "/sandbox")

import driver
import landlock
import sandbox

WRITABLE = ("/mnt/data", "/mnt/state", "/tmp", "/dev/shm")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")


def main(settings):
    """Serve until the jobs end."""
    jobs = os.fdopen(os.dup(0), "rb", buffering=0)
    answers = settings["answers"]
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.set_inheritable(answers, False)
    held = give_up_rights(settings)
    os.write(answers, json.dumps({"held": held}).encode() + b"\n")
    os.chdir("/mnt/data")
    sys.argv, sys.path = ["code"], ["/mnt/data", *sys.path[1:], "/sandbox"]
    namespace = driver.Namespace("/mnt/state", cloudpickle)
    fresh = True
    process = os.getpid()
    while job := jobs.readline():
        fetch_the_dead()
        keep = driver.read_job("/mnt/inbox")[0]["keep"] == "1"
        driver.call(namespace, inbox="/mnt/inbox", restore=keep and fresh, save=keep)
        fresh = False
        if os.getpid() != process:
            os._exit(0)  # a child that the code forked came here
        os.write(answers, b"done " + job)


def fetch_the_dead():
    """Forget children that were killed after the last call: they would count as processes."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def give_up_rights(settings):
    """User, files, memory, processes, calls; returns the names of what holds."""
    held = []
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(settings["uid"])
        os.setuid(settings["uid"])
        held.append("user")
    version = landlock.restrict(readable=settings["readable"], writable=[*WRITABLE, *DEVICES])
    held += ["landlock"] if version else []
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    held += sandbox.limit(
        memory_bytes=settings["memory_bytes"],
        reserved_bytes=16 << 30,
        cpu_seconds=None,
        file_bytes=settings["disk_bytes"],
        processes=settings["processes"],
        files=256,
    )
    if not sandbox.refuse_calls(processes=True, sockets=True):
        sys.exit("the kernel has no seccomp filters: the code cannot be held")
    return [*held, "calls"]


def cloudpickle():
    """The package, where the interpreter has it."""
    import cloudpickle as package

    return package


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
