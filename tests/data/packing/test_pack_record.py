"""The record beside a packed file tells the chat template, and only of the file that it was written for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from modlib.data.packed.file import PackedFile
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.packing.pack_record import packed_chat_template


def test_the_template_that_a_file_was_packed_with(tmp_path: Path) -> None:
    data = tmp_path / "chat-val.packed"  # one of several outputs of one record
    with PackedFileWriter(data, vocab_size=300, end_of_document_id=0) as writer:
        writer.write(np.arange(20))
    assert packed_chat_template(data) is None
    (tmp_path / "a.pack.json").write_text("no JSON")
    (tmp_path / "b.pack.json").write_text("[]")
    outputs = {"chat-train.packed": {"sha256": "0"}, data.name: {"sha256": PackedFile(data).header.sha256}}
    told = {"settings": {"chat_template": "{{ messages }}"}, "outputs": outputs}
    (tmp_path / "chat.pack.json").write_text(json.dumps(told))
    assert packed_chat_template(data) == "{{ messages }}"
    outputs[data.name]["sha256"] = "of what was there before"
    (tmp_path / "chat.pack.json").write_text(json.dumps(told))
    assert packed_chat_template(data) is None
    (tmp_path / "chat.pack.json").write_text(json.dumps({**told, "settings": {"chat": False}}))
    assert packed_chat_template(data) is None
