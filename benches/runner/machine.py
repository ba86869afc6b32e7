"""The machine as /proc and the disk show it: whose time, whose memory, how long a sync."""

import ctypes
import os
import pathlib
import re
import signal
import socket
import statistics
import time

SYNCS = 200
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def with_descendants(process):
    """The process and its descendants."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = stat_fields(int(entry))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, unseen = [], [process]
    while unseen:
        pid = unseen.pop()
        found.append(pid)
        unseen.extend(children.get(pid, []))
    return found


def stat_fields(pid):
    """/proc/PID/stat from the state on, since a command's name may hold spaces; None if it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def cpu_seconds(pids):
    """User and system time of these processes."""
    ticks = 0
    for fields in filter(None, map(stat_fields, pids)):
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def thread_seconds(pid):
    """Time on a core by the name of the thread, numbers left out: `tokio-rt-worker`, `modulith-writer`."""
    spent = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            name = re.sub(r"-?\d+$", "", (task / "comm").read_text().strip())
            spent[name] = spent.get(name, 0) + int((task / "schedstat").read_text().split()[0]) / 1e9
        except OSError:
            continue
    return spent


def machine_cpu_seconds():
    """What all cores have worked, for whomever; the time that a hypervisor took counts too."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, open("/proc/stat").readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def pss_mib(pid):
    """Proportional set size of one process; 0 if it is gone."""
    try:
        rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024


def model():
    """`2 cores of AMD EPYC 7B13`"""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return f"{os.cpu_count()} cores of {', '.join(sorted(names)) or 'an unknown processor'}"


def sync_us(folder):
    """What the disk takes for the least that is durable, 4 KiB appended and synced: the median and the 99th of 100."""
    page, took = bytes(4096), []
    path = folder / "sync-probe"
    probe = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(SYNCS):
            began = time.perf_counter()
            os.write(probe, page)
            os.fdatasync(probe)
            took.append(1e6 * (time.perf_counter() - began))
    finally:
        os.close(probe)
        path.unlink()
    return {"median": statistics.median(took), "p99": statistics.quantiles(took, n=100)[-1]}
