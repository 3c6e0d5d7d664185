"""What a closed ledger is, and its binary form: a JSON header, then the token arrays one after the other.

Layout: 8 bytes "OGLEDG01", u32 header length, the header (JSON), then per segment token_ids (<i4), lp_gen (<f8) and mask (u1).
"""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
import orjson
from pydantic import BaseModel

from gym_servers.protocol import Segment

MAGIC = b"OGLEDG01"


class LedgerExport(BaseModel):
    """Everything the model server sampled for one rollout.

    usage: the engine's own counts over all calls: prompt_tokens, sampled_tokens, requests.
    dropped: sampled tokens that are in no segment (calls that were aborted); segments' masks plus dropped equal sampled_tokens.
    """

    rollout_id: str
    segments: list[Segment] = []
    usage: dict[str, int] = {"prompt_tokens": 0, "sampled_tokens": 0, "requests": 0}
    finish_reasons: list[str] = []
    truncated: bool = False
    truncation_reason: Literal["", "max_tokens", "context"] = ""
    dropped: int = 0


def pack_ledger(ledger: LedgerExport) -> bytes:
    """Binary form of a ledger."""
    header = ledger.model_dump(exclude={"segments"})
    header["segments"] = [
        {"n": len(s.token_ids), "weight_version": s.weight_version, "break_reason": s.break_reason}
        for s in ledger.segments
    ]
    head = orjson.dumps(header)
    parts = [MAGIC, struct.pack("<I", len(head)), head]
    for s in ledger.segments:
        parts.append(np.asarray(s.token_ids, dtype="<i4").tobytes())
        parts.append(np.asarray(s.lp_gen, dtype="<f8").tobytes())
        parts.append(np.asarray(s.mask, dtype="u1").tobytes())
    return b"".join(parts)


def unpack_ledger(body: bytes) -> LedgerExport:
    """The ledger in `body`. Raises ValueError where it is cut off or something else."""
    if body[:8] != MAGIC or len(body) < 12:
        raise ValueError("not a ledger: the first bytes are wrong")
    (size,) = struct.unpack_from("<I", body, 8)
    header = orjson.loads(body[12 : 12 + size])
    place = 12 + size
    segments = []
    for head in header.pop("segments"):
        n = head.pop("n")
        if len(body) < place + 13 * n:
            raise ValueError(f"the ledger is cut off: {len(body)} bytes, at least {place + 13 * n} expected")
        segments.append(
            Segment(
                token_ids=np.frombuffer(body, "<i4", n, place).tolist(),
                lp_gen=np.frombuffer(body, "<f8", n, place + 4 * n).tolist(),
                mask=np.frombuffer(body, "u1", n, place + 12 * n).tolist(),
                **head,
            )
        )
        place += 13 * n
    if place != len(body):
        raise ValueError(f"{len(body) - place} bytes too many behind the ledger")
    return LedgerExport(segments=segments, **header)
