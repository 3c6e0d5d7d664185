"""Which language a text is in: langdetect with a fixed seed, its profiles from the package, nothing downloaded."""

from __future__ import annotations

from functools import cache
from typing import Any

from environments.instruction_following.text import words

DETECTED_CHARS = 10000
_ENGLISH = frozenset(
    "the and that with this are you they from have has would which their were been my your his she of to is it for".split()
)


@cache
def _factory() -> Any:
    """A detector factory of our own: the package's global one may be reseeded by anybody."""
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.seed = 0
    return factory


def load() -> None:
    """Read the profiles (about a second) before the first answer needs them."""
    _factory()


def detect(text: str) -> str:
    """The code of the likeliest language; "" where the text has nothing to tell by, such as digits only."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = _factory().create()
    detector.append(text[:DETECTED_CHARS])
    try:
        return str(detector.detect())
    except LangDetectException:
        return ""


def english(text: str) -> bool:
    """Whether the text is English. The detector errs on short text, so the commonest English words decide first."""
    found = [word.lower() for word in words(text[:DETECTED_CHARS])]
    common = [word for word in found if word in _ENGLISH]
    if len(set(common)) >= 2 and len(common) >= 0.2 * len(found):
        return True
    return detect(text) == "en"
