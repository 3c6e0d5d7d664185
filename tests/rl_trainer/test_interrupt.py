"""Signals: raised at once, or at the end of what holds them, and never twice."""

from __future__ import annotations

import os
import signal

import pytest

from rl_trainer.interrupt import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_at_once_and_handlers_come_back(number: signal.Signals) -> None:
    before, interrupts = signal.getsignal(number), Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts.installed():
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was not raised")
    assert signal.getsignal(number) == before


def test_a_held_signal_is_raised_once_when_the_outermost_block_is_left() -> None:
    interrupts, done = Interrupts(), []
    with interrupts.installed():
        with pytest.raises(KeyboardInterrupt), interrupts.held():
            with interrupts.held():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        with interrupts.held():
            done.append("cleanup")  # what was raised is not raised again
    assert done == ["inner", "outer", "cleanup"]


def test_signals_are_taken_back_from_a_library() -> None:
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts.installed():
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        interrupts.claim()
        os.kill(os.getpid(), signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    interrupts.claim()  # outside of the block nothing is ours
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_inside_is_what_is_raised() -> None:
    interrupts = Interrupts()
    with interrupts.installed(), pytest.raises(ValueError, match="its own"), interrupts.held():
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("its own")
