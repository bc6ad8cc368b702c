"""WebDataset archives: what comes out, in which split, and what is refused."""

import io
import json
import os
import tarfile

import pytest
from own_sets import archive, cut, numbered, picture, values_of

from driftar_jax.data import pipeline


def test_archives_become_pictures_classes_and_captions(tmp_path):
    say = lambda i: f"picture {i}".encode()  # noqa: E731
    archive(tmp_path / "a-000.tar", numbered(0, 12, txt=say))
    archive(tmp_path / "a-001.tar", numbered(12, 8, txt=say))
    (tmp_path / "classnames.txt").write_text("even\nodd\n")
    train = pipeline.load_source(f"webdataset:{tmp_path}", "train")
    test = pipeline.load_source(f"webdataset:{tmp_path}", "test")
    assert train.class_names == test.class_names == ("even", "odd")
    assert train.image_shape == (5, 6, 3)
    assert (len(train), len(test)) == (18, 2)
    assert sorted(values_of(train) + values_of(test)) == list(range(20))
    assert train.captions == [f"picture {i}" for i in values_of(train)]


def test_what_is_held_out_stays_when_archives_are_added(tmp_path):
    archive(tmp_path / "a.tar", numbered(0, 20))
    before = values_of(pipeline.load_source(f"webdataset:{tmp_path}", "test"))
    archive(tmp_path / "b.tar", numbered(20, 20))
    after = values_of(pipeline.load_source(f"webdataset:{tmp_path}", "test"))
    assert len(after) == 4 and len(before) == 2
    train = values_of(pipeline.load_source(f"webdataset:{tmp_path}", "train"))
    assert not set(train) & set(after)


@pytest.mark.parametrize("held", ["test", "validation"])
def test_parts_are_read_from_names(tmp_path, held):
    archive(tmp_path / "train-000.tar", numbered(0, 6))
    archive(tmp_path / f"{held}-000.tar", numbered(6, 2))
    name = f"webdataset:{tmp_path}"
    assert values_of(pipeline.load_source(name, "train")) == list(range(6))
    assert values_of(pipeline.load_source(name, "test")) == [6, 7]


def test_patterns_with_numbers_in_braces(tmp_path):
    for i in range(3):
        archive(tmp_path / f"x-{i:02d}.tar", numbered(10 * i, 4))
    part = pipeline.load_source(f"webdataset:{tmp_path}/x-{{00..01}}.tar", "train")
    held = pipeline.load_source(f"webdataset:{tmp_path}/x-{{00..01}}.tar", "test")
    assert sorted(values_of(part) + values_of(held)) == [0, 1, 2, 3, 10, 11, 12, 13]


def test_json_members_say_class_and_caption(tmp_path):
    tell = lambda i: json.dumps({"label": "ab"[i % 2], "text": f"t{i}"}).encode()  # noqa: E731
    samples = [(n, d) for n, d in numbered(0, 4, json=tell) if not n.endswith(".cls")]
    archive(tmp_path / "a.tar", samples)
    part = pipeline.load_source(f"webdataset:{tmp_path}", "train")
    assert part.class_names == ("a", "b") and part.captions[0].startswith("t")


def test_pictures_without_classes_are_one_class(tmp_path):
    archive(tmp_path / "a.tar", [(n, d) for n, d in numbered(0, 4) if n.endswith(".png")])
    part = pipeline.load_source(f"webdataset:{tmp_path}", "train")
    assert part.num_classes == 1 and part.captions is None


def _compress(path):
    import gzip

    path.write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize(
    "change, said",
    [
        (cut, "whole uncompressed archives"),
        (_compress, "whole uncompressed archives"),
        (lambda p: archive(p, [("a.txt", b"x")]), "they hold none"),
        (lambda p: archive(p, numbered(0, 2) + [("7.png", picture(1, mode="L"))]), "a class"),
        (lambda p: archive(p, [("a.png", b"no picture"), ("a.cls", b"0")]), "bad pictures"),
        (lambda p: archive(p, [("a.png", picture(1, mode="L")), ("a.jpg", b"")]), "two pictures"),
        (lambda p: archive(p, numbered(0, 1, json=lambda i: b"[" * 10**5)), "nested without end"),
        (lambda p: archive(p, numbered(0, 1, txt=lambda i: b"x" * 70000)), "at most 65536"),
        (lambda p: archive(p, numbered(0, 2, txt=lambda i: b" x"[: 2 * i])), "1 lack it: a/00000"),
        (lambda p: archive(p, [("a.png", picture(1)), ("a.cls", b" ")]), "a.cls: label is ''"),
        (lambda p: archive(p, [("a.png", picture(1)), ("a.cls", b"1\n2")]), "label is '1"),
        (lambda p: p.write_bytes(p.read_bytes() * 2), "more lies behind its end mark"),
        (lambda p: archive(p, []), "hold none but 1 archives without a picture"),
        (lambda p: (p.unlink(), p.symlink_to(p)), "whole uncompressed archives"),
        (lambda p: (p.unlink(), os.mkfifo(p)), "it holds 1 pipes and devices"),
        (
            lambda p: archive(
                p, numbered(0, 2) + [("x.png", picture(2, mode="L")), ("x.cls", b"q")]
            ),
            "not both",
        ),
    ],
)
def test_a_bad_archive_is_one_line(tmp_path, change, said):
    change(archive(tmp_path / "a.tar", numbered(0, 20)))
    with pytest.raises(ValueError, match=said) as caught:
        pipeline.load_source(f"webdataset:{tmp_path}", "train")
    assert "\n" not in str(caught.value) and "data.name: got" in str(caught.value)


def test_what_an_archive_holds_beside_is_counted_and_never_read(tmp_path, capsys):
    samples = [(f"./{name}", data) for name, data in numbered(0, 20)]
    for name in (".DS_Store", "__MACOSX/x.png", "__MACOSX/._0.png", "a/.ipynb_checkpoints/b.png"):
        samples.append((name, picture((1, 0, 0))))
    samples += [("@eaDir/0.jpg", b""), ("0.mp4", b""), ("9.seg.png", b""), ("README", b"")]
    samples.append(("5000.txt", b"alone"))
    archive(tmp_path / "a.TAR", samples)
    with tarfile.open(tmp_path / "a.TAR", "a") as out:
        for kind, name in (
            (tarfile.SYMTYPE, "x.png"),
            (tarfile.DIRTYPE, "d"),
            (tarfile.FIFOTYPE, "f"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "00000.png"
            out.addfile(link)
    for name in ("README.md", "a.tar.gz", "._a.tar", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    archive(tmp_path / "__MACOSX" / "b.tar", numbered(0, 1))
    part = pipeline.load_source(f"webdataset:{tmp_path}", "train")
    assert len(part) == 18 and part.class_names == ("0", "1")
    assert part.left_out == (
        "1 files with .gz, 1 files with .txt, 7 hidden or of the system, 2 links and devices, "
        "1 members with .mp4, 1 members with .seg.png, 1 members with no ending, "
        "1 samples without a picture"
    )
    pipeline.tell_left_out(part)
    assert capsys.readouterr().err.count("\n") == 1


def test_folders_inside_of_archives(tmp_path):
    for folder in ("cat", "dog"):
        archive(tmp_path / folder / "a.tar", [(f"{folder}/{n}", d) for n, d in numbered(0, 3)])
    samples = [(f"{f}/{i}.png", picture((i, 0, 0))) for f in ("cat", "dog") for i in range(3)]
    path = archive(tmp_path / "b" / "a.tar", samples)
    part = pipeline.load_source(f"webdataset:{path}", "train")
    said = "2 folders inside, which are no classes without .cls (cat, dog)"
    assert part.class_names == ("picture",) and part.left_out == said
    for parts in (("train", "val"), ("set/Train", "set/VALID")):
        samples = [(f"{f}/{i}.png", picture((i, 0, 0))) for f in parts for i in range(3)]
        archive(path, samples)
        with pytest.raises(ValueError, match="archives of one part each .they hold "):
            pipeline.load_source(f"webdataset:{path}", "train")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["train", "val"], "classes, not parts of a set .train, val"),
        (["10", "9" * 200], "labels 0..131071 .* has 9999"),
        (["0", str(2**17)], "labels 0..131071 .* has 131072"),
        (["0", "-1"], "class numbers or class names, not both"),
    ],
)
def test_labels_that_no_set_has(tmp_path, labels, said):
    samples = []
    for i, label in enumerate(labels):
        samples += [(f"{i}.png", picture((i, 0, 0))), (f"{i}.cls", label.encode())]
    archive(tmp_path / "a.tar", samples)
    with pytest.raises(ValueError, match=f"^data.name: got .*{said}") as caught:
        pipeline.load_source(f"webdataset:{tmp_path}", "train")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"even\nodd", ("even", "odd")),
        (b"\xef\xbb\xbfeven\r\nodd\r\n", ("even", "odd")),
        (b"even\nodd\nthird\n", ("even", "odd", "third")),
        (b"even\n\nodd\n", "a name in every line"),
        (b"", "a name in every line"),
        (b"\xff\xfee\0", "classnames.txt in UTF-8"),
        (b"train\nval\n", "not parts of a set"),
        (b"even\n", "labels 0..0"),
    ],
)
def test_names_of_classes_beside_the_archives(tmp_path, text, names):
    archive(tmp_path / "a.tar", numbered(0, 20))
    (tmp_path / "classnames.txt").write_bytes(text)
    if isinstance(names, str):
        with pytest.raises(ValueError, match=f"^data.name: got .*{names}"):
            pipeline.load_source(f"webdataset:{tmp_path}", "train")
        return
    part = pipeline.load_source(f"webdataset:{tmp_path}", "train")
    assert part.class_names == names
    assert part.left_out == ("1 classes without a picture (third)" if len(names) > 2 else "")


def test_nothing_there_and_parts_for_some_are_refused(tmp_path):
    with pytest.raises(ValueError, match="with files"):
        pipeline.load_source(f"webdataset:{tmp_path}", "train")
    archive(tmp_path / "train-0.tar", numbered(0, 2))
    archive(tmp_path / "more.tar", numbered(2, 2))
    with pytest.raises(ValueError, match="train and test alone"):
        pipeline.load_source(f"webdataset:{tmp_path}", "train")
    (tmp_path / "more.tar").unlink()
    (tmp_path / "train-0.tar").rename(tmp_path / "test-0.tar")
    with pytest.raises(ValueError, match="not test alone"):
        pipeline.load_source(f"webdataset:{tmp_path}", "test")
    with pytest.raises(ValueError, match="data.split"):
        pipeline.load_source(f"webdataset:{tmp_path}", "dev")


def test_the_held_out_part_has_the_channels_of_what_is_trained_on(tmp_path):
    archive(tmp_path / "train.tar", [("1.png", picture((1, 2, 3)))])
    archive(tmp_path / "test.tar", [("2.png", picture(9, mode="L"))])
    for part in ("train", "test"):
        assert pipeline.load_source(f"webdataset:{tmp_path}", part).image_shape == (5, 6, 3)


def test_a_part_beside_train_and_test_is_counted(tmp_path):
    for part, first in (("train", 0), ("test", 4), ("val", 8)):
        archive(tmp_path / f"{part}.tar", numbered(first, 4))
    for part, reds in (("train", range(4)), ("test", range(4, 8))):
        found = pipeline.load_source(f"webdataset:{tmp_path}", part)
        assert values_of(found) == list(reds)
        assert found.left_out == "4 pictures of val beside train and test"


def test_a_sparse_member_is_counted_not_read_at_a_wrong_place(tmp_path):
    place = tmp_path / "a.tar"
    with tarfile.open(place, "w") as out:
        for i in range(2):
            data = picture((i, 0, 0))
            facts = tarfile.TarInfo(f"{i}.png")
            facts.size = len(data)
            if i:  # the map of an old GNU header: one piece, and how long the file is
                facts.type = tarfile.GNUTYPE_SPARSE
                header = bytearray(facts.tobuf(tarfile.GNU_FORMAT))
                header[386:410] = b"%011o\0%011o\0" % (0, len(data))
                header[483:495] = b"%011o\0" % len(data)
                header[148:156] = b" " * 8
                header[148:155] = b"%06o\0" % sum(header)
                out.fileobj.write(header + data.ljust(-(-len(data) // 512) * 512, b"\0"))
                out.offset += len(header) + -(-len(data) // 512) * 512
            else:
                out.addfile(facts, io.BytesIO(data))
    part = pipeline.load_source(f"webdataset:{place}", "train")
    assert len(part) == 1 and part.left_out == "1 sparse files"


@pytest.mark.parametrize("text", [b"a\0b", b'{"caption": "a\\ud83d"}'])
def test_captions_that_no_file_can_hold_are_one_line(tmp_path, text):
    ending = "json" if text.startswith(b"{") else "txt"
    archive(tmp_path / "a.tar", numbered(0, 4, **{ending: lambda i: text}))
    with pytest.raises(ValueError, match="zero bytes or half letters in 2|half of a letter"):
        _ = pipeline.load_source(f"webdataset:{tmp_path}", "train").captions
