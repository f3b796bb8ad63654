"""A Python whose libraries are loaded already: each start is a fork, as importing them takes longer than most commands.

`python tests/support/warm_python.py SOCKET MODULE…` serves; `write_interpreter` writes the `python` that asks it. What
is run, with which arguments, variables, folder and streams, and its exit code are those of a Python of one's own.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ASK = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1:3] == ["-m", "pip"]:  # a stand-in: what it would fetch takes 6 GB
    print("torch==2.9.0\\ntorchvision==0.24.0\\ntriton==3.5.0" if "list" in sys.argv else "pip stands still")
    sys.exit()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([os.path.abspath(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)])
    socket.send_fds(server, [b" "], [0, 1, 2])
    server.sendall(asked.encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(8) or 70))
"""


def write_interpreter(path: Path, address: Path) -> None:
    """Put a `python` that asks the server at `address` to `path`."""
    path.unlink(missing_ok=True)
    path.write_text(ASK.format(python=sys.executable, address=str(address)))
    path.chmod(0o755)


@contextmanager
def warm_python(address: Path, folder: Path, modules: Sequence[str]) -> Iterator[None]:
    """Serve at `address` with `modules` of `folder` loaded. At the end, whatever it started ends too."""
    command = [sys.executable, __file__, str(address), *modules]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    try:
        while not address.exists():
            assert process.poll() is None, "the server of warm Pythons did not start"
            time.sleep(0.05)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def serve(address: str) -> None:
    """Fork for each request, and return in the fork that is to run it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address + ".new")
        listener.listen(64)
        os.rename(address + ".new", address)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
            while reap():
                pass
    asked, streams, *_ = socket.recv_fds(connection, 1, 3)
    while part := connection.recv(1 << 16):
        asked += part
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(str(code if code >= 0 else 128 - code).encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.executable, sys.argv, folder, variables = json.loads(asked)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)


def reap() -> bool:
    """Has a fork ended?"""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def become() -> None:
    """Do what `python ARGUMENTS` does, for `python FILE …`, `python -m MODULE …` and `python -c CODE …`."""
    arguments = sys.argv[1:] if sys.argv[0] == "-u" else sys.argv
    sys.path[0] = os.getcwd()
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if (custom := Path(folder, "sitecustomize.py")).exists():
            runpy.run_path(str(custom))
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(sys.argv[0]).parent.resolve())
        runpy.run_path(sys.argv[0], run_name="__main__")


def end() -> None:
    """Do what was asked for, and end as Python does, but without taking everything apart: that would copy all pages."""
    try:
        become()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if code != error.code and error.code is not None:
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    address, *modules = sys.argv[1:]
    sys.path[0] = os.getcwd()
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # or each fork's collector would touch, and so copy, all pages
    serve(address)
    end()
