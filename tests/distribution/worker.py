"""A rank without MindSpore: joins the others and does what its arguments say.

worker.py ACTION [RANK]: the action is done by that rank (by all without one), after an exchange.
"""

import os
import signal
import sys
import time
from pathlib import Path

from mindtwins.distribution import connection, launch, launched
from mindtwins.errors import UserError
from mindtwins.training.signals import StopRequest

connection.NOTICE_SECONDS = 1.0


def main(argv):
    action, victim = argv[0], int(argv[1]) if len(argv) > 1 else None
    if action == "steps":
        launched.stand_apart()
        steps(Path(argv[2]))
    if action == "early":
        raise UserError("no such recipe")
    # On a GPU there is no bridge to MindSpore's CPU cluster to build.
    launch.begin(distribute=action != "alone", device_target="GPU")
    here = launch.current_connection()
    if here is None:
        print("alone")
        return
    print("all:", *here.exchange("hello", b"x" * here.rank + b"%d" % here.rank), flush=True)
    if victim in (None, here.rank):
        act(action, here)
    if action == "late":
        here.exchange("other label" if here.rank == victim else "label")
    if action == "busy":
        time.sleep(60)
    here.exchange("next")


def steps(folder):
    with StopRequest() as request:
        (folder / "stepping").write_text("yes")
        for _ in range(600):
            time.sleep(0.05)
            if request.signal:
                break
        time.sleep(0.5)
        (folder / "saved").write_text(f"after signal {request.signal}")
    sys.exit(128 + request.signal)


def act(action, here):
    if action == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if action in ("kill", "busy"):
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "fork":
        if not os.fork():
            time.sleep(3)  # holds what its parent had open
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "refuse":
        raise UserError("cannot read image bad.jpg")
    if action == "crash":
        raise KeyError("surprise")
    if action == "exit":
        sys.exit(7)


launch.run_cli(main)
