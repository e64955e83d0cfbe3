"""An archive yields every image in its order, whatever is wrong with it, and says what could not be read."""

import gzip
import io
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.errors import ImageError
from imagekin.sources.open import count_records, open_source
from imagekin.sources.records import Record
from tests.data import shared_data
from tests.sources.pictures import FILES, bad, good, tar_bytes, write_files


@pytest.mark.parametrize(("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.TGZ", "w:gz")])
def test_every_image_in_the_archives_order(tmp_path: Path, name: str, mode: str) -> None:
    path = tmp_path / name
    path.write_bytes(tar_bytes({"z/9.png": b"first", "./a/1.jpg": b"", "a//./2.jpg": b"x" * 9999}, mode))
    assert [(record.key, record.data, record.label) for record in open_source(path)] == [
        ("z/9.png", b"first", "z"),
        ("a/1.jpg", b"", "a"),
        ("a/2.jpg", b"x" * 9999, "a"),
    ]


def test_a_gzip_file_named_tar_and_one_of_several_parts(tmp_path: Path) -> None:
    plain = tar_bytes(FILES)
    path = tmp_path / "x.tar"
    path.write_bytes(gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]))
    assert good(open_source(path)) == FILES


def test_other_members_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes({"._a.jpg": b"", "b.cls": b"3", "__MACOSX/.x/a.jpg": b"", "a.jpg": b"ok"}))
    source = open_source(path)
    assert good(source) == {"a.jpg": b"ok"}
    assert source.ignored.total == 3


def test_members_that_are_no_files_or_lead_outside_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in [
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("device.jpg", tarfile.CHRTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
            ("folder.jpg", tarfile.DIRTYPE),
            ("/etc/x.jpg", tarfile.REGTYPE),
            ("../x.jpg", tarfile.REGTYPE),
            ("a/../../x.jpg", tarfile.REGTYPE),
            ("ok.jpg", tarfile.REGTYPE),
        ]:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd"
            archive.addfile(member)
    records = list(open_source(path))
    assert good(records) == {"ok.jpg": b""}
    reasons = bad(records)
    assert set(reasons) == {
        *("link.jpg", "hard.jpg", "device.jpg", "pipe.jpg"),
        *("/etc/x.jpg", "../x.jpg", "a/../../x.jpg"),
    }
    assert "out of the archive" in reasons["../x.jpg"]
    assert "link" in reasons["link.jpg"]
    assert all(isinstance(record.data, bytes | ImageError) for record in records)


def test_names_that_are_not_utf_8_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo("café.jpg"))
        archive.addfile(tarfile.TarInfo("ok.jpg"))
    records = list(open_source(path))
    assert set(good(records)) == {"ok.jpg"}
    assert "UTF-8" in bad(records)["caf\\udce9.jpg"]


def test_a_member_over_the_limit_is_not_read_and_the_next_one_is(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(tar_bytes({"huge.jpg": b"0" * 10_000_000, "ok.jpg": b"ok"}, "w:gz"))
    records = list(open_source(path, DecodeLimits(max_bytes=1000)))
    assert good(records) == {"ok.jpg": b"ok"}
    assert "10,000,000 bytes" in bad(records)["huge.jpg"]


def test_cut_off_anywhere_it_yields_what_came_before_and_one_error(tmp_path: Path) -> None:
    files = {f"{number}.jpg": bytes([number]) * 700 for number in (1, 2, 3)}
    whole = tar_bytes(files)
    ends = [whole.index(data) + len(data) for data in files.values()]
    marker = 3 * (512 + 1024)
    path = tmp_path / "x.tar"
    for size in range(0, len(whole), 101):
        path.write_bytes(whole[:size])
        records = list(open_source(path))
        assert list(good(records).items()) == list(files.items())[: sum(size >= end for end in ends)], size
        assert list(bad(records)) == (["x.tar"] if size < marker + 512 else []), size


def test_cut_off_when_compressed_it_yields_what_came_before_and_one_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    files = {f"{number}.jpg": noise.bytes(7000) for number in (1, 2, 3)}
    whole = gzip.compress(tar_bytes(files))
    path = tmp_path / "x.tgz"
    for size in [*range(0, len(whole), 997), *range(len(whole) - 20, len(whole))]:
        path.write_bytes(whole[:size])
        records = list(open_source(path))
        found = good(records)
        assert list(found.items()) == list(files.items())[: len(found)], "only whole files, from the first one on"
        assert len(found) >= (size - 500) // 7200, f"all that lie before the cut at {size}"
        assert list(bad(records)) == ["x.tgz"], size


def test_a_damaged_header_is_reported_and_not_taken_for_the_end(tmp_path: Path) -> None:
    whole = bytearray(tar_bytes(FILES))
    whole[1024 + 10] ^= 0xFF  # in the name of the second member
    path = tmp_path / "x.tar"
    path.write_bytes(whole)
    records = list(open_source(path))
    assert list(good(records)) == ["a.jpg"]
    assert "after a.jpg" in bad(records)["x.tar"]


def test_a_damaged_checksum_of_gzip_is_reported(tmp_path: Path) -> None:
    whole = bytearray(tar_bytes(FILES, "w:gz"))
    whole[-5] ^= 0xFF
    path = tmp_path / "x.tgz"
    path.write_bytes(whole)
    records = list(open_source(path))
    assert good(records) == FILES
    assert list(bad(records)) == ["x.tgz"]


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize("data", [b"", b"no archive", b"\x1f\x8bnot gzip", b"x" * 5000])
def test_what_is_no_archive_is_one_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    records = list(open_source(tmp_path / name))
    assert list(bad(records)) == [name]
    assert not good(records)


@pytest.mark.parametrize("size", [2**62, 2**33, -(2**40), -512])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, b"Q"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_an_impossible_size_neither_fills_the_memory_nor_goes_on_for_ever(
    tmp_path: Path, size: int, kind: bytes, compress: Callable[[bytes], bytes]
) -> None:
    forged = bytearray(tarfile.TarInfo("x.jpg").tobuf())
    forged[124:136] = bytes([0x80 if size >= 0 else 0xFF]) + size.to_bytes(11, "big", signed=True)
    forged[156:157] = kind
    forged[148:156] = b" " * 8
    forged[148:156] = b"%06o\0 " % sum(forged)
    path = tmp_path / "x.tar"
    path.write_bytes(compress(tar_bytes({"first.jpg": b"1"})[:1024] + bytes(forged) + b"\0" * 2048))
    records = list(open_source(path))
    assert good(records) == {"first.jpg": b"1"}
    assert list(bad(records)) == ["x.tar"]
    assert count_records(path) is None or compress is bytes


@settings(max_examples=200, deadline=2000)
@given(data=st.data())
def test_whatever_bytes_are_changed_nothing_but_records_comes_out(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.jpg", "é/" + "n" * 120 + ".png", "c.gif"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    whole = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        block = data.draw(st.integers(0, len(whole) // 512 - 1)) * 512
        whole[block + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):  # a checksum that fits, so that the change is believed
            whole[block + 148 : block + 156] = b" " * 8
            whole[block + 148 : block + 156] = b"%06o\0 " % sum(whole[block : block + 512])
    path = tmp_path_factory.getbasetemp() / "mutated.tar"
    path.write_bytes(whole)
    records = list(open_source(path))
    assert len(records) <= 5
    assert sum(record.key == "mutated.tar" for record in records) <= 1
    count_records(path)


def test_it_can_be_read_from_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe.tar"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(tar_bytes(FILES),))
    writer.start()
    assert good(open_source(path)) == FILES
    writer.join()


def test_members_are_counted_by_their_headers(tmp_path: Path) -> None:
    plain = write_files(tmp_path, {"x.tar": tar_bytes(FILES | {"notes.txt": b"", "../x.jpg": b""})}) / "x.tar"
    assert count_records(plain) == 5 == len(list(open_source(plain)))
    packed = write_files(tmp_path, {"x.tgz": tar_bytes(FILES, "w:gz")}) / "x.tgz"
    assert count_records(packed) is None


def test_the_count_of_a_large_archive_is_estimated(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    member = tarfile.TarInfo("x.jpg").tobuf()
    path.write_bytes(member * 30_000 + b"\0" * 1024)
    assert count_records(path) == pytest.approx(30_000, rel=0.01)


def test_all_of_cifar_10() -> None:
    records = list(open_source(shared_data("cifar10-test.tar.gz")))
    assert len(records) == 10_000
    assert len({record.key for record in records}) == 10_000
    assert {record.label for record in records if record.label} == {
        *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    }
    assert "airplane/0000.jpg" in good(records)


def test_every_member_of_the_hostile_archive_is_a_record_or_counted() -> None:
    source = open_source(shared_data("hostile-images.tar"))
    records = list(source)
    assert len(records) + source.ignored.total == 651
    assert count_records(shared_data("hostile-images.tar")) == len(records)


def shard(tmp_path: Path, files: dict[str, bytes]) -> list[Record]:
    path = tmp_path / "shard.tar"
    path.write_bytes(tar_bytes(files))
    return list(open_source(path))


def test_sidecars_of_a_webdataset_shard_give_label_and_payload(tmp_path: Path) -> None:
    files = {
        "0001.jpg": b"one",
        "0001.cls": b"cat\n",
        "0001.json": b'{"label": "not this", "price": 3}',
        "0001.txt": b"a cat",
        "0002.json": b'{"label": 7}',
        "0002.seg.png": b"two",
        "0003.jpg": b"three",
    }
    assert [(record.key, record.label, record.payload) for record in shard(tmp_path, files)] == [
        ("0001.jpg", "cat", {"price": 3, "text": "a cat"}),
        ("0002.seg.png", "7", None),
        ("0003.jpg", None, None),
    ]


@pytest.mark.parametrize(
    ("sidecar", "content"),
    [
        ("1.json", b"{"),
        ("1.json", b"[1]"),
        ("1.json", b"[" * 5000),
        ("1.json", b'{"label": {}}'),
        ("1.json", b'{"x": NaN}'),
        ("1.cls", b"\xff"),
        ("1.cls", b"x" * 2000),
        ("1.txt", b"x" * 70_000),
    ],
)
def test_a_broken_sidecar_is_an_error_of_its_image(tmp_path: Path, sidecar: str, content: bytes) -> None:
    records = shard(tmp_path, {"1.jpg": b"one", sidecar: content, "2.jpg": b"two", "2.cls": b"ok"})
    assert good(records) == {"2.jpg": b"two"}
    assert set(bad(records)) == {"1.jpg"}


def test_many_members_of_one_name_do_not_wait_in_memory_for_one_another(tmp_path: Path) -> None:
    files = {f"1.{number}.jpg": b"x" for number in range(100)} | {"1.cls": b"late"}
    records = shard(tmp_path, files)
    assert len(good(records)) == 100
    assert [record.label for record in records].count("late") < 16
