"""Several hosts on one Linux machine: each has its own network, processes, mounts, home, /tmp and a real sshd on port 22.

All of them hang on a bridge in a namespace of their own, the "laptop", from which commands are run; nothing of the
machine's own network is touched, and labs do not see each other. `kill` is a power cut, `boot` switches on again.
Needs root, Linux, `ip`, `unshare`, `sshd` and `rsync`. Everything is ended by process ids that were written down.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NET = "10.77.0"
ROOT = Path(__file__).parents[2]
PATIENCE = 1800.0
"""Seconds after which a state that must come is given up: a busy machine takes ten times as long as an idle one."""
TOOLS = ("ip", "tc", "unshare", "sshd", "ssh-keygen", "rsync", "nc")

INIT = r"""
set -e
mount --make-rprivate /
for place in $SHOWN; do mkdir -p "$HOST$place"; mount --bind "$place" "$HOST$place"; done
mount --rbind "$HOST/root" /root
mount --rbind "$HOST/tmp" /tmp
mount -t tmpfs -o size=2g,mode=1777 tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
hostname "$NAME"
printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' > "$HOST/resolv.conf"
mount --bind "$HOST/resolv.conf" /etc/resolv.conf
printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$NAME" > "$HOST/hosts"
mount --bind "$HOST/hosts" /etc/hosts
ip link set lo up
exec "$SSHD" -D -e -f "$LAB/sshd_config" -o ListenAddress="$ADDRESS" -p "$PORT" 2> "$HOST/sshd.log"
"""
"""What PID 1 of a host does. A name server that is not there would cost Ray 20 s at each start, hence resolv.conf;
gloo binds what the host's own name resolves to, hence hosts."""


def missing() -> str:
    """Return why there can be no lab here, or an empty string."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: openssh-server rsync iproute2 netcat-openbsd)"
    probe = subprocess.run(["unshare", "--net", "--pid", "--fork", "--mount-proc", "true"], capture_output=True)
    return "" if probe.returncode == 0 else f"unshare: {probe.stderr.decode().strip()}"


class Lab:
    """Hosts by number: host 11 has the address 10.77.0.11."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.shared, self.key = folder / "laptop", folder / "shared", folder / "id"
        self.checkout = ROOT
        """The repository's root, where commands are given."""
        self.bashrc = ""
        """More lines for the hosts' ~/.bashrc, which commands over ssh read."""
        self.environment: dict[str, str] = {}
        """More environment of the laptop."""
        self.keys: list[str] = []
        """More public keys that hosts let in."""
        self._prefix = f"arclab{os.getpid()}"
        self._laptop = f"{self._prefix}-0"
        self._pids: dict[int, int] = {}
        self._wired: set[int] = set()
        for place in (self.home / ".ssh", self.shared, folder / "tmp"):
            place.mkdir(parents=True)
        for name in ("id", "hostkey"):
            run_quietly("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/hostkey\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
            "PasswordAuthentication no\nMaxStartups 100\nMaxSessions 100\n"
        )
        run_quietly("ip", "netns", "add", self._laptop)
        run_quietly("ip", "-n", self._laptop, "link", "set", "lo", "up")
        run_quietly("ip", "-n", self._laptop, "link", "add", "br0", "type", "bridge")
        run_quietly("ip", "-n", self._laptop, "addr", "add", f"{NET}.1/24", "dev", "br0")
        run_quietly("ip", "-n", self._laptop, "link", "set", "br0", "up")

    def boot(self, *numbers: int, port: int = 22) -> None:
        """Switch hosts on and wait for their sshd; one that was on before finds its /tmp empty."""
        for number in numbers:
            self._start(number, port)
        for number in numbers:
            self._wait_for_sshd(number, port)

    def kill(self, number: int) -> None:
        """Cut the power: every process of the host dies at once, because the namespace's first one does."""
        os.kill(self._pids.pop(number), signal.SIGKILL)

    def throttle(self, number: int, rate: str) -> None:
        """Let a host receive no more than so much, such as 200mbit; an empty rate takes the limit away."""
        limit = f"add dev v{number} root tbf rate {rate} burst 64kb latency 50ms" if rate else f"del dev v{number} root"
        run_quietly(*f"ip netns exec {self._laptop} tc qdisc {limit}".split())

    def pids(self, number: int) -> list[int]:
        """List the processes of a host (0: of the laptop), as the machine numbers them."""
        done = subprocess.run(["ip", "netns", "pids", self._name(number)], capture_output=True, text=True)
        return [int(word) for word in done.stdout.split()]

    def ray_processes(self, number: int) -> list[str]:
        """List what still runs of Ray on a host."""
        commands = [_command_line(pid) for pid in self.pids(number)]
        return [c for c in commands if re.search(r"raylet|gcs_server|ray::|ray/dashboard|autoscaler", c)]

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs words on the laptop."""
        path = f"{self.folder}/programs:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {
            **{
                "HOME": str(self.home),
                "TMPDIR": str(self.folder / "tmp"),
                "PATH": path,
                "RAY_USAGE_STATS_ENABLED": "0",
            },
            **{"PYTHONPATH": "", "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "token", "COLUMNS": "200"},
            **self.environment,
        }
        given = [f"{key}={value}" for key, value in environment.items()]
        return ["ip", "netns", "exec", self._laptop, "env", *given, *words]

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on the laptop, in its checkout."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=PATIENCE, cwd=self.checkout)
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    @contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command on the laptop meanwhile; its whole session is ended."""
        log = (self.folder / f"{Path(words[0]).name}.log").open("a")
        process = subprocess.Popen(
            self.command(*words),
            cwd=self.checkout,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            log.close()

    def program(self, name: str, text: str) -> str:
        """Put a script on the laptop's PATH, for a program that is not here; return its path."""
        file = self.folder / "programs" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
        return str(file)

    def enter(self) -> None:
        """Move the calling thread, and only it, to the laptop's network."""
        with open(f"/run/netns/{self._laptop}") as file:
            new_net = 0x40000000  # CLONE_NEWNET, <linux/sched.h>
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), new_net) == 0, os.strerror(ctypes.get_errno())

    def inside(self, number: int, script: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script on a host, over ssh, as Ray does."""
        options = ["-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        return self.run("ssh", *options, f"root@{NET}.{number}", f"source ~/.bashrc; {script}")

    def close(self) -> None:
        """Switch everything off and take the namespaces away."""
        for number in list(self._pids):
            self.kill(number)
        for pid in self.pids(0):  # ssh's shared connections, which stay for some seconds
            _signal(pid)
        for number in (*self._wired, 0):
            wait_until(lambda number=number: not self.pids(number), 10, "processes are left")
            run_quietly("ip", "netns", "del", self._name(number))

    def names_left(self) -> list[str]:
        """List namespaces of this lab that are still there."""
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        return [line.split()[0] for line in listed.splitlines() if line.startswith(self._prefix)]

    def _name(self, number: int) -> str:
        return f"{self._prefix}-{number}"

    def _start(self, number: int, port: int) -> None:
        name, address, host = self._name(number), f"{NET}.{number}", self.folder / f"host{number}"
        shutil.rmtree(host / "tmp", ignore_errors=True)
        (host / "root" / ".ssh").mkdir(parents=True, exist_ok=True, mode=0o700)
        (host / "tmp").mkdir()
        (host / "tmp").chmod(0o1777)
        self._let_in(host)
        if number not in self._wired:
            run_quietly("ip", "netns", "add", name)
            self._wired.add(number)
            run_quietly(*f"ip -n {self._laptop} link add v{number} type veth peer name eth0 netns {name}".split())
            run_quietly(*f"ip -n {self._laptop} link set v{number} master br0 up".split())
            run_quietly(*f"ip -n {name} addr add {address}/24 dev eth0".split())
            run_quietly(*f"ip -n {name} link set eth0 up".split())
            run_quietly(*f"ip -n {name} route add default via {NET}.1".split())
        prefixes = {str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix, str(ROOT))}
        environment = {
            **{"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOST": str(host), "NAME": f"host{number}", "ADDRESS": address},
            **{
                "LAB": str(self.folder),
                "SSHD": shutil.which("sshd", path="/usr/sbin:/usr/bin") or "",
                "PORT": str(port),
            },
            "SHOWN": " ".join(p for p in sorted(prefixes) if p.startswith(("/root/", "/tmp/"))),
        }
        with (host / "init.log").open("w") as log:
            words = ["--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--mount-proc", "bash", "-c"]
            process = subprocess.Popen(
                ["ip", "netns", "exec", name, "unshare", *words, INIT],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pids[number] = process.pid

    def _let_in(self, host: Path) -> None:
        pairs = [str(pem) for pem in (self.home / ".ssh").glob("*.pem")]  # that a cloud made for Ray
        keys = [subprocess.run(["ssh-keygen", "-y", "-f", p], capture_output=True, text=True).stdout for p in pairs]
        keys += [(self.folder / "id.pub").read_text(), *(f"{key}\n" for key in self.keys)]
        (host / "root" / ".ssh" / "authorized_keys").write_text("".join(keys))
        (host / "root" / ".bashrc").write_text(
            f"export PATH={Path(sys.executable).parent}:$PATH RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1"
            f" RAY_worker_niceness=0\n{self.bashrc}"  # as in tests/conftest.py
        )

    def _wait_for_sshd(self, number: int, port: int) -> None:
        script = f"exec 3<>/dev/tcp/{NET}.{number}/{port} && head -c3 <&3"

        def answers() -> bool:
            done = subprocess.run(["ip", "netns", "exec", self._laptop, "bash", "-c", script], capture_output=True)
            return done.stdout == b"SSH"

        wait_until(answers, 20, f"no sshd: {self.folder}/host{number}/init.log")


@contextmanager
def laboratory() -> Iterator[Lab]:
    """A lab that leaves nothing; below /var/tmp, because hosts have a /tmp of their own."""
    with tempfile.TemporaryDirectory(prefix="arc-lab-", dir="/var/tmp", ignore_cleanup_errors=True) as folder:
        lab = Lab(Path(folder))
        try:
            yield lab
        finally:
            lab.close()


def wait_until(is_so: Callable[[], bool], seconds: float, otherwise: str, every: float = 0.2) -> None:
    """Wait for something; fail with a message after so many seconds."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(every)


def run_quietly(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
