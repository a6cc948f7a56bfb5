"""A file is written whole or not at all."""

from __future__ import annotations

import os
import threading

import pytest

from neural_tune import atomic_file


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    for content in (b"old and long", b"new"):
        atomic_file.write(tmp_path / "a.json", content)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"new")]


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    atomic_file.write(tmp_path / "a.json", b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_file.write(tmp_path / "a.json", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"old")]


def test_a_reader_never_sees_a_part_while_threads_write(tmp_path):
    path = tmp_path / "a.bin"
    contents = {bytes([number]) * 200_000 for number in range(3)}
    atomic_file.write(path, next(iter(contents)))
    writers = [threading.Thread(target=lambda c=c: [atomic_file.write(path, c) for _ in range(3)]) for c in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert [item.name for item in tmp_path.iterdir()] == ["a.bin"]
