"""What does a process give up before it reads what strangers made?

All that it doesn't need to compute and to answer: credentials, the file system, the network, other processes,
and memory without end. Whoever takes it over through a hole in a decoder finds a process that can read and
write the pipes it has, and nothing else.

Nothing here needs privileges. Each layer holds without the others, because not every kernel and container
has each of them.
"""

import ctypes
import fcntl
import os
import resource
import sys

LAYERS = ("landlock", "seccomp")
"""Those of `confine` that a system may lack."""
_INHERITED = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PYTHONHOME", "TZ")
_OPEN_FILES = 64
_PR_SET_NO_NEW_PRIVS = 38

# fmt: off
_ALLOWED = (
    "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "dup", "exit", "exit_group",
    "fstat", "futex", "getcpu", "getegid", "geteuid", "getgid", "getpid", "getrandom", "getrusage", "gettid",
    "gettimeofday", "getuid", "lseek", "membarrier", "mremap", "munmap", "nanosleep", "poll",
    "ppoll", "pread64", "pselect6", "read", "readv", "recvfrom", "recvmsg", "restart_syscall", "rseq",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sched_yield", "select",
    "set_robust_list", "sigaltstack", "sysinfo", "time", "times", "uname", "write", "writev",
)
# fmt: on
"""System calls of a process that computes, has threads, and reads and writes what is open, whatever their
arguments are. Those that reach further with some arguments are in `_forbid_calls`. Names that an architecture
lacks are passed over."""
_SCMP_ACT_ALLOW, _SCMP_ACT_ERRNO = 0x7FFF0000, 0x00050000
_SCMP_CMP_LT, _SCMP_CMP_EQ, _SCMP_CMP_MASKED_EQ = 2, 4, 7
_SCMP_FLTATR_CTL_TSYNC = 4
_CLONE_THREAD, _PROT_EXEC = 0x10000, 0x4
_CLONE_OTHERS = 0x7E02A000
"""Flags by which what is cloned is traced, or gets another parent or namespaces of its own."""
_MADV_HWPOISON = 100
"""The first of the pieces of advice that take memory from the whole machine, which root may give."""
_DESCRIPTOR_COMMANDS = (
    fcntl.F_DUPFD,
    fcntl.F_DUPFD_CLOEXEC,
    fcntl.F_GETFD,
    fcntl.F_SETFD,
    fcntl.F_GETFL,
)
"""What `fcntl` may be asked. Among the rest are locks, leases, and signals to any process of the user."""
_EPERM, _ENOSYS = 1, 38

_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
"""The same on every architecture."""
_LANDLOCK_FILES = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many kinds of access to files a version of Landlock, and those after it, know."""


def bare_environment() -> dict[str, str]:
    """The environment of such a process: what Python needs to start and to import what this one imports.

    It is a list of what is let through, so no credential is in it, whatever its name.
    """
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    path = os.pathsep.join(os.path.abspath(each) for each in sys.path)
    # Threads of these would be there before `confine` is called, and decoders use one.
    return {**inherited, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def confine(memory: int) -> list[str]:
    """Confines this process for good; which of the layers that a system may lack it has got.

    memory: bytes of address space that it may take from now on. To be called once all is imported that will
    be, and before anything hostile is read. From then on the process opens no file, socket or other process.

    - Limits: address space, open files, none to write, no core dump.
    - No new privileges, by which set-user-ID programs are only programs.
    - `landlock` (Linux 5.13): no file can be opened; from 6.7 no TCP, from 6.12 no signal to others.
    - `seccomp` (with libseccomp): no system call but those that computing takes.
    """
    _limit(memory)
    system = ctypes.CDLL(None, use_errno=True)
    if system.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return []
    # Before files are forbidden, of which this is one.
    library = _libseccomp()
    holds = _forbid_files(system), library is not None and _forbid_calls(library)
    return [name for name, is_there in zip(LAYERS, holds, strict=True) if is_there]


def _limit(memory: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(kind)
        least = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(kind, (least, least))


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


def _forbid_files(system: ctypes.CDLL) -> bool:
    version = system.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    kinds = max(count for since, count in _LANDLOCK_FILES.items() if since <= version)
    # What a ruleset handles is forbidden where no rule allows it, and this one has no rules.
    rules = _Ruleset((1 << kinds) - 1, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    # The ruleset's bytes, which grew with its fields.
    known = 8
    if version >= 6:
        known = 24
    elif version >= 4:
        known = 16
    ruleset = system.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(known), 0)
    if ruleset < 0:
        return False
    try:
        return bool(system.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _libseccomp() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None


def _forbid_calls(library: ctypes.CDLL) -> bool:
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_SCMP_ACT_ERRNO | _EPERM)))

    def rule(action: int, name: str, *where: _Comparison) -> bool:
        call = library.seccomp_syscall_resolve_name(name.encode())
        compared = (_Comparison * len(where))(*where)
        added = library.seccomp_rule_add_array(
            context, ctypes.c_uint32(action), call, ctypes.c_uint(len(where)), compared
        )
        return bool(added == 0)

    for name in _ALLOWED:
        rule(_SCMP_ACT_ALLOW, name)
    itself = _Comparison(0, _SCMP_CMP_EQ, os.getpid(), 0)
    not_executable = _Comparison(2, _SCMP_CMP_MASKED_EQ, _PROT_EXEC, 0)
    is_thread = _Comparison(0, _SCMP_CMP_MASKED_EQ, _CLONE_THREAD | _CLONE_OTHERS, _CLONE_THREAD)
    set_flags = _Comparison(1, _SCMP_CMP_EQ, fcntl.F_SETFL, 0)
    conditional = [
        rule(_SCMP_ACT_ALLOW, "tgkill", itself),
        rule(_SCMP_ACT_ALLOW, "sendto", _Comparison(4, _SCMP_CMP_EQ, 0, 0)),
        rule(_SCMP_ACT_ALLOW, "mmap", not_executable),
        rule(_SCMP_ACT_ALLOW, "mprotect", not_executable),
        rule(_SCMP_ACT_ALLOW, "madvise", _Comparison(2, _SCMP_CMP_LT, _MADV_HWPOISON, 0)),
        *(
            rule(_SCMP_ACT_ALLOW, "fcntl", _Comparison(1, _SCMP_CMP_EQ, command, 0))
            for command in _DESCRIPTOR_COMMANDS
        ),
        rule(_SCMP_ACT_ALLOW, "fcntl", set_flags, _Comparison(2, _SCMP_CMP_MASKED_EQ, os.O_ASYNC, 0)),
        rule(_SCMP_ACT_ALLOW, "clone", is_thread),
        # Its arguments can't be looked at. Told that there is none, the C library takes `clone`.
        rule(_SCMP_ACT_ERRNO | _ENOSYS, "clone3"),
    ]
    # For every thread, if there is more than this one.
    library.seccomp_attr_set(context, _SCMP_FLTATR_CTL_TSYNC, ctypes.c_uint32(1))
    loaded = all(conditional) and library.seccomp_load(context) == 0
    library.seccomp_release(context)
    return loaded
