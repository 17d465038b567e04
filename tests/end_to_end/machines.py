"""Machines of their own on this one: each has its network address, its processes and its home, and takes SSH.

They are namespaces of the kernel with a bridge between them. This takes root, iproute2 and OpenSSH's server.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from terminal import BIN, REPOSITORY

_NETWORK = "10.77.0"
NEEDED = ("ip", "nsenter", "rsync", "ssh", "ssh-keygen", "unshare")


def require_machines() -> None:
    """Skips the test where this machine can't make some."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    missing += ["root"] * (os.getuid() != 0) + ["sshd"] * (_sshd() is None)
    if missing:
        pytest.skip(
            f"machines of their own need {', '.join(missing)}: as root, apt install openssh-server rsync"
        )


def _sshd() -> str | None:
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One of them, while it runs."""

    address: str
    home: Path
    _holder: "subprocess.Popen[bytes]"

    def typed(self, command: str) -> subprocess.CompletedProcess[str]:
        """What became of a line of shell, typed there in the repository's root."""
        return subprocess.run(
            self._there(command), cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False
        )

    @contextlib.contextmanager
    def running(self, command: str) -> Iterator[None]:
        """A command that runs there beside the block."""
        beside = subprocess.Popen(
            self._there(f"exec {command}"),
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            beside.kill()
            beside.wait()

    def processes(self, word: str) -> list[str]:
        """The commands of its processes that have the word."""
        found = []
        for process in psutil.Process(self._holder.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(shlex.join(process.cmdline()))
        return [command for command in found if word in command]

    @property
    def pid(self) -> int:
        """The number of its first process, outside."""
        (first,) = psutil.Process(self._holder.pid).children()
        return first.pid

    def _there(self, command: str) -> list[str]:
        spaces = ("--net", "--mount", "--pid", "--uts")
        shell = ("env", "-i", f"HOME={self.home}", "bash", "--login", "-c", command)
        return ["nsenter", "--target", str(self.pid), *spaces, f"--wd={REPOSITORY}", *shell]


@dataclass(frozen=True, kw_only=True)
class Network:
    """Machines that reach each other."""

    key: Path
    """Opens each of them over SSH, for the user root."""
    machines: tuple[Machine, ...]


@contextlib.contextmanager
def network(names: tuple[str, ...], environment: Mapping[str, str]) -> Iterator[Network]:
    """Machines of these names; environment: of every shell there."""
    folder = Path(tempfile.mkdtemp(prefix="machines-"))
    try:
        with contextlib.ExitStack() as started:
            yield _started(folder, names, environment, started)
    finally:
        shutil.rmtree(folder)


def _started(
    folder: Path, names: tuple[str, ...], environment: Mapping[str, str], started: contextlib.ExitStack
) -> Network:
    """The first has the bridge."""
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    running: list[Machine] = []
    for number, name in enumerate(names, 1):
        machine = started.enter_context(_machine(folder, name, f"{_NETWORK}.{number}", environment))
        running.append(machine)
        if number > 1:
            _connect(running[0], machine)
            continue
        _call(machine, "ip link add bridge type bridge && ip link set bridge up")
        _call(machine, f"ip addr add {machine.address}/24 dev bridge")
    return Network(key=folder / "key", machines=tuple(running))


@contextlib.contextmanager
def _machine(folder: Path, name: str, address: str, environment: Mapping[str, str]) -> Iterator[Machine]:
    home = folder / name
    (home / "ray").mkdir(parents=True)
    exported = {"PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", **environment}
    lines = [f"export {key}={shlex.quote(value)}" for key, value in exported.items()]
    (home / ".profile").write_text("\n".join(lines) + "\n")
    # SSH looks a user's home up and heeds no HOME.
    users = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    homes = [[*user[:5], str(home) if user[0] == "root" else user[5], user[6]] for user in users]
    (folder / f"{name}.passwd").write_text("".join(f"{':'.join(user)}\n" for user in homes))
    options = {
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "key.pub",
        # the folder is in /tmp, where everybody may write
        "StrictModes": "no",
        "PidFile": "none",
    }
    server = [_sshd(), "-D", "-e", "-f", "/dev/null"]
    server += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    # All nodes of a cluster have their files in the folder of this name.
    sessions = Path("/tmp/ray")
    sessions.mkdir(exist_ok=True)
    steps = (
        f"mount --bind {folder / f'{name}.passwd'} /etc/passwd",
        f"mount --bind {home / 'ray'} {sessions}",
        f"hostname {name}",
        "ip link set lo up",
        f"exec {shlex.join(map(str, server))}",
    )
    inside = " && ".join(steps)
    with (folder / f"{name}.log").open("wb") as log:
        holder = subprocess.Popen(
            [
                *("unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("bash", "-c", inside),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        while "listening" not in (folder / f"{name}.log").read_text():
            assert holder.poll() is None, (folder / f"{name}.log").read_text()
            time.sleep(0.05)
        yield Machine(address=address, home=home, _holder=holder)
    finally:
        holder.kill()
        holder.wait()


def _connect(switch: Machine, machine: Machine) -> None:
    """Gives the machine a cable to the other one's bridge, and its address."""
    plug = f"to-{machine.address.rpartition('.')[2]}"
    _call(switch, f"ip link add {plug} type veth peer name cable")
    # From outside, as the switch doesn't see the machine's processes.
    moved = ("ip", "link", "set", "cable", "netns", str(machine.pid))
    subprocess.run(["nsenter", "--target", str(switch.pid), "--net", *moved], check=True)
    _call(switch, f"ip link set {plug} master bridge && ip link set {plug} up")
    _call(machine, f"ip addr add {machine.address}/24 dev cable && ip link set cable up")
    _call(machine, "ip route add default dev cable")


def _call(machine: Machine, command: str) -> None:
    ended = machine.typed(command)
    assert ended.returncode == 0, ended.stderr
