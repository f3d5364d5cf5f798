"""How scripts end that are interrupted, or meet what is not theirs to mend."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mindtwins.errors import run_cli

ROOT = Path(__file__).parents[1]


def interrupted(program: str, folder: Path, number: int = signal.SIGINT) -> tuple[int, str]:
    """Exit code and output of a script that sends itself a signal by calling `interrupt()`."""
    script = folder / "script.py"
    head = f"""
    import os, signal, sys
    from mindtwins.errors import run_cli
    def interrupt():
        os.kill(os.getpid(), {int(number)})
    """
    script.write_text(textwrap.dedent(head) + textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_one_line_and_its_code(tmp_path: Path, number: int):
    program = """
    def main(argv):
        interrupt()
        print("went on")
    run_cli(main)
    """
    assert interrupted(program, tmp_path, number) == (128 + number, "interrupted\n")


def test_blocks_are_left_in_order(tmp_path: Path):
    program = """
    from mindtwins.files import atomic_write
    def main(argv):
        with atomic_write("out") as file:
            file.write(b"half")
            interrupt()
    run_cli(main)
    """
    program = program.replace('"out"', repr(str(tmp_path / "out")))
    assert interrupted(program, tmp_path) == (130, "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_while_a_module_is_imported_it_ends_at_once(tmp_path: Path):
    """Whatever the module would make of the exception."""
    (tmp_path / "slow_module.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException:\n"
        "    print('went on')\n"
    )
    program = """
    def main(argv):
        print("before", flush=True)
        import slow_module
    run_cli(main)
    """
    assert interrupted(program, tmp_path) == (130, "before\ninterrupted\n")


def test_while_mindspore_compiles_it_ends_at_once(tmp_path: Path):
    """It would print a traceback of its own and leave a folder."""
    (tmp_path / "mindspore").mkdir()
    (tmp_path / "mindspore" / "__init__.py").touch()
    (tmp_path / "mindspore" / "api.py").write_text(
        "def compile(parse):\n"
        "    try:\n"
        "        parse()\n"
        "    except BaseException:\n"
        "        print('[ERROR] went on')\n"
    )
    program = """
    def main(argv):
        from mindspore.api import compile
        compile(interrupt)
    run_cli(main)
    """
    assert interrupted(program, tmp_path) == (130, "interrupted\n")


def test_also_before_a_script_calls_run_cli(tmp_path: Path):
    program = """
    from mindtwins import interruptible
    print("before", flush=True)
    import slow_module
    """
    module = tmp_path / "slow_module.py"
    module.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    assert interrupted(program, tmp_path) == (130, "before\ninterrupted\n")


@pytest.mark.parametrize("turned_into", ["ValueError", "RuntimeError", "UserError", "OSError"])
def test_what_a_library_makes_of_it_is_not_shown(tmp_path: Path, turned_into: str):
    program = f"""
    from mindtwins.errors import UserError
    def main(argv):
        try:
            interrupt()
        except BaseException as error:
            raise {turned_into}("it is damaged") from error
    run_cli(main)
    """
    assert interrupted(program, tmp_path) == (130, "interrupted\n")


def test_a_second_one_ends_what_the_first_one_did_not(tmp_path: Path):
    program = """
    def main(argv):
        for _ in range(3):
            try:
                interrupt()
            except BaseException:
                print("swallowed", flush=True)
    run_cli(main)
    """
    assert interrupted(program, tmp_path) == (130, "swallowed\ninterrupted\n")


def test_a_job_in_the_background_ignores_ctrl_c_as_it_was_told(tmp_path: Path):
    program = """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    def main(argv):
        interrupt()
        print("went on")
    run_cli(main)
    """
    assert interrupted(program, tmp_path) == (0, "went on\n")


def test_a_full_memory_is_one_line(capsys: pytest.CaptureFixture):
    def main(argv: list[str]) -> None:
        raise MemoryError

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("error: the memory is full: ")
    assert signal.getsignal(signal.SIGINT) == before
