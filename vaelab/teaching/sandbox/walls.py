"""Two walls of Linux that need no rights: Landlock for files, seccomp for calls of the system.

Standard library only: ``jail.py`` imports this file, and a copy of it lies in the folder of a run,
where it starts the notebook's kernel (see :func:`main`). The numbers are those of the headers
``landlock.h``, ``seccomp.h``, ``filter.h``, ``audit.h`` and ``unistd.h``.
"""

import ctypes
import os
import platform
import struct
import sys
from contextlib import suppress

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
READ = EXECUTE | READ_FILE | READ_DIR
TRUNCATE = 1 << 14
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | 1 << 15  # the rights that a file can have

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
EPERM, ENOSYS, EAFNOSUPPORT, EACCES = 1, 38, 97, 13
AF_UNIX, SOCK_STREAM, CLONE_NEWUSER = 1, 1, 0x10000000
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Each call with its number on x86_64 and on aarch64; None where there is no such call.
REFUSED = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    # keyrings
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "quotactl": (179, 60),
    # the machine
    "bpf": (321, 280), "perf_event_open": (298, 241), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "swapoff": (168, 225),
    "reboot": (169, 142), "acct": (163, 89), "syslog": (103, 116), "vhangup": (153, 58),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
    # memory that outlives a process, or that no count of processes shows
    "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180),
}  # fmt: skip
ABSENT = {  # programs have another way where the system doesn't know these
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "clone3": (435, 435),  # its flags can't be seen, those of clone can
}  # fmt: skip
IGNORED = {  # they seem to work: Landlock doesn't cover a file's mode, owner, times, attributes
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
SOCKET, CONNECT, CLONE, KILL = (41, 198), (42, 203), (56, 220), (62, 129)


def landlock_abi() -> int:
    """The version of Landlock that this system has; 0 for none."""
    if not sys.platform.startswith("linux"):
        return 0
    found = _call(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    return max(found, 0)


def has_seccomp() -> bool:
    """True if this system filters calls, on a processor whose numbers are known here."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return "Seccomp:" in status.read() and platform.machine() in AUDIT_ARCH
    except OSError:
        return False


def allow_only(read: list[str], list_: list[str], write: list[str]) -> None:
    """From now on this process and all that it starts reach no other file.

    Parameters
    ----------
    read
        Files and folders that may be read, with all below.
    list_
        Folders whose names may be listed, with all below, but not the files read.
    write
        Files and folders that may be changed too, with all below.

    Raises
    ------
    OSError
        Landlock is not available.
    """
    abi = landlock_abi()
    files = (1 << (13 + (abi >= 2) + (abi >= 3))) - 1  # REFER came with 2, TRUNCATE with 3
    files |= (abi >= 5) << 15  # ioctl on devices
    network, scopes = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = struct.pack("QQQ", files, network, scopes)
    ruleset = _checked(
        LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0, what="Landlock"
    )
    rules = [(path, READ) for path in read] + [(path, READ_DIR) for path in list_]
    for path, rights in rules + [(path, files) for path in write]:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what is not there needs no rule
        if not os.path.isdir(path):
            rights &= ON_FILES
        rule = struct.pack("=Qi", rights & files, place)
        _checked(
            LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0, what=f"rule {path}"
        )
        os.close(place)
    _no_new_privileges()
    _checked(LANDLOCK_RESTRICT_SELF, ruleset, 0, what="Landlock")
    os.close(ruleset)


def filter_calls(ignore: bool) -> None:
    """From now on the system refuses this process, and all that it starts, what a notebook never
    needs: other processes' memory, keyrings, mounts, networks, memory that can't be counted.

    Parameters
    ----------
    ignore
        Whether calls that change a file's mode, owner or times do nothing.

    Raises
    ------
    OSError
        The system has no such filter, or this processor's numbers are not known here.
    """
    rules = [_refuse(numbers, EPERM) for numbers in REFUSED.values()]
    rules += [_refuse(numbers, ENOSYS) for numbers in ABSENT.values()]
    rules += [_refuse(numbers, 0) for numbers in IGNORED.values()] if ignore else []
    rules += [
        # sockets: streams within this machine only
        _when(SOCKET, [_load(16), _jump_unless(AF_UNIX), _error(EAFNOSUPPORT)]),
        _when(SOCKET, [_load(24), _and(0xF), _jump_unless(SOCK_STREAM), _error(EAFNOSUPPORT)]),
        _when(CLONE, [_load(16), _and(CLONE_NEWUSER), _jump_unless(0), _error(EPERM)]),
        # kill(-1) is everything that this user runs
        _when(KILL, [_load(16), _jump_if(0xFFFFFFFF), _error(EPERM)]),
    ]
    _install(rules)


def refuse_connect() -> None:
    """From now on this process and all that it starts can't reach a listening socket: a service of
    this machine could act for them. Raises OSError."""
    _install([_refuse(CONNECT, EACCES)])


# --------------------------------------------------------------------------- a filter, in BPF


def _code(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, k)


def _load(offset: int) -> bytes:
    """Of ``struct seccomp_data``: 0 the number, 4 the processor, 16 and 24 the low halves of the
    first two arguments (both processors are little-endian)."""
    return _code(0x20, offset)


def _and(k: int) -> bytes:
    return _code(0x54, k)


def _jump_unless(k: int) -> bytes:
    """Past the next instruction if the value is k."""
    return _code(0x15, k, yes=1)


def _jump_if(k: int) -> bytes:
    """Past the next instruction unless the value is k."""
    return _code(0x15, k, no=1)


def _error(number: int) -> bytes:
    return _code(0x06, ERRNO | number)


def _here(numbers: tuple) -> int | None:
    return numbers[list(AUDIT_ARCH).index(platform.machine())]


def _when(numbers: tuple, instructions: list[bytes]) -> bytes:
    """For the call of these numbers these instructions; the call's number is loaded again."""
    number = _here(numbers)
    if number is None:
        return b""
    body = b"".join([*instructions, _load(0)])
    return _code(0x15, number, no=len(body) // 8) + body


def _refuse(numbers: tuple, error: int) -> bytes:
    number = _here(numbers)
    return b"" if number is None else _jump_if(number) + _error(error)


def _install(rules: list[bytes]) -> None:
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        raise OSError(ENOSYS, f"no filter of system calls for {machine}")
    start = [_load(4), _jump_unless(AUDIT_ARCH[machine]), _error(EPERM), _load(0)]
    if machine == "x86_64":  # the same calls under other numbers
        start += [_code(0x35, 0x40000000, no=1), _error(EPERM)]
    program = b"".join([*start, *rules, _code(0x06, ALLOW)])
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _no_new_privileges()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, head, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _no_new_privileges() -> None:
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _call(*arguments) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))


def _checked(*arguments, what: str) -> int:
    found = _call(*arguments)
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return found


def main() -> None:
    """Become the notebook's kernel: Python with these arguments, which reaches no service."""
    if sys.argv[1] == "filtered":
        with suppress(OSError):  # a containment that needs this one was tried before
            refuse_connect()
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])


if __name__ == "__main__":
    main()
