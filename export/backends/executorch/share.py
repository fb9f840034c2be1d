"""Store once what a ``.pte`` holds twice: tied weights, as a table to look up and as a head.

The table is a constant of the program, the head's weight is data that the delegate finds by name.
ExecuTorch writes both. But a name is only an offset and a size, so it may as well point into the
constants where the bytes are the same.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from executorch.exir._serialize._flatbuffer_program import (
    _flatbuffer_to_program,
    _program_to_flatbuffer,
)
from executorch.exir._serialize._program import (
    _ExtendedHeader,
    _get_extended_header,
    _insert_flatbuffer_header,
)
from executorch.exir._serialize.padding import aligned_size
from executorch.exir.schema import Program

_MAGIC = r"ET[0-9a-zA-Z][0-9a-zA-Z]"
_SEGMENT_ALIGNMENT = 128


def share_constants(path: Path) -> int:
    """Point named data of the file at equal constants and drop the copies.

    Args:
        path: A ``.pte``; it is written anew.

    Returns:
        The bytes that were saved.
    """
    data = path.read_bytes()
    header = _get_extended_header(data)
    if header is None:  # no segments, so nothing is stored apart
        return 0
    program = _flatbuffer_to_program(data[: header.program_size])
    segments = memoryview(data)[header.segment_base_offset :]
    kept = _close_up(program, segments, _copies(program, segments))
    end = kept[-1][0] + len(kept[-1][1])
    with path.open("wb") as file:
        file.write(_with_header(program, segment_data_size=end))
        base = aligned_size(file.tell(), _SEGMENT_ALIGNMENT)
        for offset, segment in kept:
            file.seek(base + offset)
            file.write(segment)
    return len(data) - path.stat().st_size


def _copies(program: Program, segments: memoryview) -> dict[int, int]:
    """Return each segment of named data that equals a constant, and where in the constants."""
    if not program.constant_segment.offsets:
        return {}
    constants = _bytes_of(program, program.constant_segment.segment_index, segments)
    starts = program.constant_segment.offsets
    by_room = defaultdict(list)
    for start, stop in zip(starts, [*starts[1:], aligned_size(len(constants), 16)], strict=True):
        by_room[stop - start].append(start)
    found = {}
    for index in {entry.segment_index for entry in program.named_data}:
        data = _bytes_of(program, index, segments)
        for start in by_room[aligned_size(len(data), 16)]:
            if constants[start : start + len(data)] == data:
                found[index] = start
    return found


def _bytes_of(program: Program, index: int, segments: memoryview) -> memoryview:
    segment = program.segments[index]
    return segments[segment.offset : segment.offset + segment.size]


def _close_up(
    program: Program, segments: memoryview, copies: dict[int, int]
) -> list[tuple[int, memoryview]]:
    """Give the program's segments their new offsets; return the bytes that belong at each."""
    kept, end = [], 0
    for index, segment in enumerate(program.segments):
        if index in copies:  # the constants come before all named data
            constants = program.segments[program.constant_segment.segment_index]
            segment.offset = constants.offset + copies[index]
        else:
            data = _bytes_of(program, index, segments)
            segment.offset = aligned_size(end, _SEGMENT_ALIGNMENT)
            end = segment.offset + segment.size
            kept.append((segment.offset, data))
    return kept


def _with_header(program: Program, *, segment_data_size: int) -> bytes:
    result = _program_to_flatbuffer(program)
    room = aligned_size(_ExtendedHeader.EXPECTED_LENGTH, result.max_alignment)
    size = room + len(result.data)
    header = _ExtendedHeader(size, aligned_size(size, _SEGMENT_ALIGNMENT), segment_data_size)
    return bytes(
        _insert_flatbuffer_header(result.data, _MAGIC, header.to_bytes().ljust(room, b"\0"))
    )
