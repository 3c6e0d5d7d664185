"""The progress display of a whole tiny run: in place on a terminal, which it leaves as it was; plain lines where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from rl_trainer.tiny_model import make_tiny_model

WIDTH, HEIGHT = 110, 30
RUN = """
import sys, time
from pathlib import Path
from loop_world import make_run, small_config
from rl_trainer.progress import Progress

model, folder = Path(sys.argv[1]), Path(sys.argv[2])
run, world = make_run(small_config(model, folder, steps=2), model, heldout=True)
world.change = lambda rollout: time.sleep(0.2)  # refreshes fall between the rollouts
with Progress(2, run.config.environments) as progress:
    run.observer = progress
    run.train()
    progress.note("a note that stays")
print("the end")
"""


class Screen:
    """What a terminal shows of what was written to it: text, \\\\r, \\\\n, cursor up, erase line; colours are left out."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.hidden = False

    def write(self, text: str) -> None:
        """One character, or one escape sequence. Any that is not known here is an error: it might move the cursor."""
        if found := re.fullmatch(r"\x1b\[(\d*)A", text):
            self.row = max(0, self.row - int(found[1] or 1))
        elif text == "\x1b[2K":
            self.lines[self.row] = ""
        elif text in ("\x1b[?25l", "\x1b[?25h"):
            self.hidden = text.endswith("l")
        elif text == "\r":
            self.column = 0
        elif text == "\n":
            self.row, self.column = self.row + 1, 0  # the terminal adds the \r
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif not re.fullmatch(r"\x1b\[[\d;]*m", text):
            assert not text.startswith("\x1b"), f"unknown sequence {text!r}"
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + text + line[self.column + 1 :]
            self.column += 1
            assert self.column <= WIDTH, "a line that wraps cannot be erased by its number"


def shown(model: Path, folder: Path, terminal: bool) -> tuple[str, bool]:
    """What the run writes, and whether it left the terminal's modes as they were."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "TERM": "xterm"}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        variables.pop(name, None)
    variables["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    command = [sys.executable, "-c", RUN, str(model), str(folder)]
    if not terminal:
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, timeout=240, check=True)
        return done.stdout.decode(), True
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    before = termios.tcgetattr(theirs)
    with subprocess.Popen(command, env=variables, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        data = b""
        os.set_blocking(ours, False)
        while process.poll() is None or not data.endswith(b"the end\r\n"):
            try:
                data += os.read(ours, 65536)
            except BlockingIOError:
                if process.poll() is not None:
                    break
                try:
                    process.wait(0.02)
                except subprocess.TimeoutExpired:
                    pass
        assert process.returncode == 0, data.decode()[-2000:]
    after = termios.tcgetattr(theirs)
    os.close(ours)
    os.close(theirs)
    return data.decode(), before == after


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_the_display_is_updated_in_place_and_leaves_the_terminal_clean(model: Path, tmp_path: Path) -> None:
    text, restored = shown(model, tmp_path, terminal=True)
    screen, heads, rewards, hidden = Screen(), set[str](), set[str](), False
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[^\x1b]", text):
        screen.write(token)
        hidden |= screen.hidden
        now = [line for line in screen.lines if re.match(r"step \d", line)]
        assert len(now) <= 1, now  # one display, never a second one below it
        if now and now[0].rstrip().endswith(" left"):
            heads.add(now[0])
            rewards |= {line for line in screen.lines if "reward now" in line and line.startswith("  ")}
    done = {
        (found[1], int(found[2]))
        for head in heads
        if (found := re.search(r"(step \d/2)  generate (\d)/6 rollouts", head))
    }
    assert {step for step, _ in done} == {"step 1/2", "step 2/2"} and len(done) >= 4, heads
    assert any(re.search(r"eval_before \d/8 rollouts", head) for head in heads), heads
    assert any(re.search(r"rollouts, \d+ tokens/s", head) for head in heads), heads
    assert any(re.search(r"0:\d\d so far, 0:\d\d left$", head) for head in heads), heads  # known after the first step
    for name in ("a", "bb"):
        assert any(re.match(rf"  {name} +reward now [01]\.\d\d +steps: [01]\.\d\d", line) for line in rewards), rewards
    assert [line for line in screen.lines if line.strip()][-2:] == ["a note that stays", "the end"]
    assert not any("rollouts" in line or "reward now" in line for line in screen.lines), screen.lines
    assert hidden and not screen.hidden and screen.column == 0 and restored


@pytest.mark.slow
def test_where_there_is_no_terminal_it_is_plain_lines(model: Path, tmp_path: Path) -> None:
    text, _ = shown(model, tmp_path, terminal=False)
    assert "\x1b" not in text and "\r" not in text
    lines = text.splitlines()
    assert "step 0: generate, 6 rollouts" in lines and "a note that stays" in lines
    steps = [line for line in lines if re.match(r"step [12]/2: ", line)]
    figures = r"reward a [01]\.\d\d, bb [01]\.\d\d, \d+ tokens/s, \d+ s, \d:\d\d left"
    assert len(steps) == 2 and all(re.fullmatch(rf"step {k + 1}/2: {figures}", line) for k, line in enumerate(steps)), (
        lines
    )
