"""A closed ledger on its way to the collector: a JSON header, then the token arrays as raw little-endian numbers.

Layout: magic `OGL1`, header length (uint32), header, then per segment token_ids (int32), mask (uint8), lp_gen (float64).
"""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
import orjson
from pydantic import BaseModel, Field, ValidationError

from gym_servers.protocol import OmnigymError, Segment

MAGIC = b"OGL1"
BYTES_PER_TOKEN = 4 + 1 + 8


class WireError(OmnigymError):
    """Bytes that are not a packed ledger."""


class LedgerExport(BaseModel):
    """What one rollout sampled, as the model server recorded it.

    usage: the engine's own counts over all calls, aborted ones included: prompt_tokens, sampled_tokens, requests.
    finish_reasons: one per call that ended, in order. dropped: sampled tokens in no segment (aborted calls).
    sampled_tokens = sum of the segments' masks + dropped.
    calls: admitted to the ledger: answered, aborted, failed in the engine, or refused by a full context (no engine request).
    temperature: of every call of the rollout; None where there was none.
    """

    rollout_id: str
    segments: list[Segment] = Field(default_factory=list)
    usage: dict[str, int] = Field(default_factory=lambda: {"prompt_tokens": 0, "sampled_tokens": 0, "requests": 0})
    finish_reasons: list[str] = Field(default_factory=list)
    truncated: bool = False
    truncation_reason: Literal["", "max_tokens", "context"] = ""
    dropped: int = 0
    calls: int = 0
    temperature: float | None = None


def pack_ledger(ledger: LedgerExport) -> bytes:
    """`ledger` as bytes; `unpack_ledger` gives back an equal one."""
    header = ledger.model_dump(exclude={"segments"})
    header["segments"] = [
        {"length": len(s.token_ids), "weight_version": s.weight_version, "break_reason": s.break_reason}
        for s in ledger.segments
    ]
    head = orjson.dumps(header)
    parts = [MAGIC, struct.pack("<I", len(head)), head]
    for segment in ledger.segments:
        length = len(segment.token_ids)
        parts.append(struct.pack(f"<{length}i", *segment.token_ids))
        parts.append(bytes(segment.mask))
        parts.append(struct.pack(f"<{length}d", *segment.lp_gen))
    return b"".join(parts)


def unpack_ledger(data: bytes) -> LedgerExport:
    """The ledger in `data`. Raises WireError for anything but the exact output of `pack_ledger`."""
    if len(data) < 8 or data[:4] != MAGIC:
        raise WireError(f"not a packed ledger: it starts with {data[:4]!r}, expected {MAGIC!r}")
    (size,) = struct.unpack_from("<I", data, 4)
    try:
        header = orjson.loads(data[8 : 8 + size])
        described = header.pop("segments")
        lengths = [int(s["length"]) for s in described]
        if min(lengths, default=0) < 0 or 8 + size + BYTES_PER_TOKEN * sum(lengths) != len(data):
            raise WireError(f"packed ledger of {len(data)} bytes does not hold segments of {lengths[:8]} tokens")
        at = 8 + size
        segments = []
        for length, about in zip(lengths, described, strict=True):
            ids = np.frombuffer(data, "<i4", length, at)
            mask = np.frombuffer(data, "u1", length, at + 4 * length)
            lp_gen = np.frombuffer(data, "<f8", length, at + 5 * length)
            at += BYTES_PER_TOKEN * length
            segments.append(
                Segment.model_construct(  # of equal lengths and the right types as it is; checking every token costs more
                    token_ids=ids.tolist(),
                    mask=mask.tolist(),
                    lp_gen=lp_gen.tolist(),
                    weight_version=int(about["weight_version"]),
                    break_reason=str(about["break_reason"]),
                )
            )
        return LedgerExport(segments=segments, **header)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        raise WireError(f"damaged packed ledger: {type(error).__name__}: {error}") from None
