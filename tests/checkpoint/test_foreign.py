"""Files of other programs: what they are, by their first bytes or by their names."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastwhisper import InvalidModelFormatError, inspect_checkpoint
from fastwhisper.checkpoint.foreign import name_by_bytes, name_by_suffix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def zip_bytes(member: str) -> bytes:
    """Build a zip archive with one member."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(member, b"")
    return archive.getvalue()


KINDS = [
    (b"GGUF\x03\0\0\0", "a GGUF file"),
    (b"lmgg\x65\xca\0\0", "a ggml file of whisper.cpp"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "a PyTorch checkpoint"),
    (zip_bytes("archive/data.pkl"), "a PyTorch checkpoint"),
    (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file of Keras"),
    (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
]


@pytest.mark.parametrize(("data", "kind"), KINDS)
def test_kind_by_the_first_bytes(tmp_path: Path, data: bytes, kind: str) -> None:
    """The first bytes say what a file is, whatever its name is."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    assert (name_by_bytes(path) or "").startswith(kind)


@pytest.mark.parametrize("data", [b"", b"\x08\0\0\0\0\0\0\0{}", zip_bytes("encoder.weight.npy")])
def test_files_that_are_read_here_have_no_kind(tmp_path: Path, data: bytes) -> None:
    """Neither safetensors nor npz is a file of another program."""
    path = tmp_path / "ggml.bin"
    path.write_bytes(data)
    assert name_by_bytes(path) is None


@given(data=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_without_an_error(tmp_path: Path, data: bytes) -> None:
    """What is in a file, its kind is asked for without an error."""
    path = tmp_path / "file"
    path.write_bytes(data)
    name_by_bytes(path)


def test_what_is_not_a_file_has_no_kind(tmp_path: Path) -> None:
    """A directory and a missing file have no kind, and raise no error."""
    assert name_by_bytes(tmp_path) is None
    assert name_by_bytes(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny.pt", "a PyTorch checkpoint"),
        ("Tiny.PTH", "a PyTorch checkpoint"),
        ("pytorch_model.bin", "a PyTorch checkpoint"),
        ("ggml-base.bin", "a ggml file of whisper.cpp"),
        ("x.ggml", "a ggml file of whisper.cpp"),
        ("x.gguf", "a GGUF file"),
        ("model.bin", None),
        ("weights.safetensors", None),
    ],
)
def test_kind_by_the_name(name: str, kind: str | None) -> None:
    """The name says what a file would be, in any case."""
    assert name_by_suffix(name) == kind


@pytest.mark.parametrize(("name", "kind"), [("ggml-base.bin", "ggml"), ("tiny.pt", "PyTorch")])
def test_directory_with_files_of_other_programs_says_so(
    tmp_path: Path, name: str, kind: str
) -> None:
    """Where there are no weights but those of another program, the error says what they are."""
    (tmp_path / "config.json").touch()
    (tmp_path / name).touch()
    with pytest.raises(InvalidModelFormatError, match=f"{name} is a {kind}") as caught:
        inspect_checkpoint(tmp_path)
    assert "weights.safetensors" in str(caught.value)


@pytest.mark.parametrize("layout", ["weights.safetensors", "weights.npz", "model.bin"])
def test_weights_that_are_another_programs_say_so(
    tiny_model_dir: Callable[..., Path], layout: str
) -> None:
    """Weights under a name that is read, and a pointer of Git LFS, are told by their bytes."""
    directory = tiny_model_dir(layout=layout)
    for data, kind in KINDS:
        (directory / layout).write_bytes(data)
        with pytest.raises(InvalidModelFormatError, match=f"is {kind}") as caught:
            inspect_checkpoint(directory)
        assert caught.value.path == directory / layout
