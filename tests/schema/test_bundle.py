from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.files import sha256_bytes
from mobilekit.schema.bundle import entry_point, open_bundle
from mobilekit.schema.manifest import Manifest

PAYLOAD = b"payload"


def manifest_data(path: str = "onnx-cpu-fp32/model.onnx") -> dict[str, Any]:
    parity = {
        "executed": False,
        "reason": "made up",
        "tolerance": {"max_abs": 1, "kl": 1, "kl_p90": 1, "top1": 0},
    }
    artifact = {
        "id": "onnx-cpu-fp32",
        "format": "onnx",
        "backend": "cpu",
        "precision": "fp32",
        "runtime": {"name": "onnxruntime", "min": "1.32"},
        "files": [{"path": path, "bytes": len(PAYLOAD), "sha256": sha256_bytes(PAYLOAD)}],
        "programs": {"forward": {"inputs": [], "outputs": []}},
        "weights": {"bytes_by_dtype": {"float32": 7}, "share_at_precision": 1.0},
        "parity": parity,
    }
    return {
        "schema": "mobilekit.bundle/1",
        "task": "causal-lm",
        "interface": "token-logits/1",
        "model": {"context_length": 8, "vocab_size": 4},
        "artifacts": [artifact],
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    (root / "onnx-cpu-fp32").mkdir(parents=True)
    (root / "onnx-cpu-fp32" / "model.onnx").write_bytes(PAYLOAD)
    (root / "manifest.json").write_text(json.dumps(manifest_data()))
    return root


def zipped(root: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in root.rglob("*"):
            archive.write(path, path.relative_to(root))
    return target


def test_a_directory_and_its_zip_open_alike(bundle: Path, tmp_path: Path) -> None:
    plain, packed = open_bundle(bundle), open_bundle(zipped(bundle, tmp_path / "b.zip"))
    assert plain.manifest == packed.manifest
    path = packed.artifact_path(packed.artifact("onnx"))
    assert path.read_bytes() == PAYLOAD
    packed.check_all()


def test_the_unpacked_copy_goes_with_the_bundle(bundle: Path, tmp_path: Path) -> None:
    import gc

    packed = open_bundle(zipped(bundle, tmp_path / "b.zip"))
    root = packed.root
    assert root.is_dir()
    del packed
    gc.collect()
    assert not root.exists()


@pytest.mark.parametrize("name", [None, "onnx-cpu-fp32", "onnx", "cpu"])
def test_an_artifact_is_found_by_any_of_its_names(bundle: Path, name: str | None) -> None:
    assert open_bundle(bundle).artifact(name).id == "onnx-cpu-fp32"


def test_an_unknown_artifact_lists_what_there_is(bundle: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_bundle(bundle).artifact("onnx-cpu-fp31")
    assert "did you mean 'onnx-cpu-fp32'" in caught.value.message
    assert "onnx-cpu-fp32" in caught.value.hint


def test_a_changed_byte_is_refused(bundle: Path) -> None:
    (bundle / "onnx-cpu-fp32" / "model.onnx").write_bytes(b"Payload")
    opened = open_bundle(bundle)
    with pytest.raises(InvalidInputError, match="has changed"):
        opened.artifact_path(opened.artifact())


def test_a_missing_file_is_refused(bundle: Path) -> None:
    (bundle / "onnx-cpu-fp32" / "model.onnx").unlink()
    with pytest.raises(InvalidInputError, match="is missing"):
        open_bundle(bundle).check_all()


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path, path: str) -> None:
    (bundle / "manifest.json").write_text(json.dumps(manifest_data(path)))
    with pytest.raises(InvalidInputError, match="leaves the directory"):
        open_bundle(bundle)


def test_a_newer_schema_says_what_to_update(bundle: Path) -> None:
    data = manifest_data() | {"schema": "mobilekit.bundle/2", "surprise": 1}
    (bundle / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(InvalidInputError) as caught:
        open_bundle(bundle)
    assert "mobilekit.bundle/2" in caught.value.message
    assert "Update MobileKit" in caught.value.hint


def test_something_else_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not a bundle"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", ["../evil", "/abs", "a/../../evil"])
def test_a_zip_member_that_leaves_is_refused(tmp_path: Path, name: str) -> None:
    target = tmp_path / "b.zip"
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest_data()))
        archive.writestr(name, "x")
    with pytest.raises(InvalidInputError, match="leaves the directory"):
        open_bundle(target)
    assert not (tmp_path / "evil").exists()


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "b.zip"
    with zipfile.ZipFile(target, "w") as archive:
        member = zipfile.ZipInfo("link")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(InvalidInputError, match="holds a link"):
        open_bundle(target)


def test_a_damaged_zip_is_refused(bundle: Path, tmp_path: Path) -> None:
    target = zipped(bundle, tmp_path / "b.zip")
    data = bytearray(target.read_bytes())
    position = data.find(PAYLOAD)
    data[position : position + 3] = b"\x00\x00\x00"
    target.write_bytes(data)
    with pytest.raises(InvalidInputError, match="damaged zip"):
        open_bundle(target)


def test_entry_point_of_a_package_is_the_package() -> None:
    first = "coreml/model.mlpackage/Manifest.json"
    assert entry_point(Path("b"), first) == Path("b/coreml/model.mlpackage")
    assert entry_point(Path("b.mlpackage"), "x/model.onnx") == Path("b.mlpackage/x/model.onnx")


def test_manifest_round_trip() -> None:
    manifest = Manifest.parse(manifest_data(), "m")
    assert Manifest.parse(manifest.to_json(), "m") == manifest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(key=st.sampled_from(sorted(manifest_data())), value=JSON)
def test_any_manifest_opens_or_is_refused_in_two_lines(
    tmp_path: Path, key: str, value: object
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest_data() | {key: value}))
    try:
        open_bundle(tmp_path)
    except InvalidInputError as error:
        assert "\n" not in error.message
        assert error.hint


def test_two_members_of_one_name_are_refused(bundle: Path, tmp_path: Path) -> None:
    target = zipped(bundle, tmp_path / "b.zip")
    with zipfile.ZipFile(target, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("onnx-cpu-fp32/model.onnx", b"other")
    with pytest.raises(InvalidInputError, match=r"b\.zip holds onnx-cpu-fp32/model\.onnx twice"):
        open_bundle(target)


def test_two_spellings_of_one_name_are_refused(bundle: Path, tmp_path: Path) -> None:
    target = zipped(bundle, tmp_path / "b.zip")
    with zipfile.ZipFile(target, "a") as file:
        file.writestr("onnx-cpu-fp32/./model.onnx", b"other")
    with pytest.raises(InvalidInputError, match="twice"):
        open_bundle(target)


def test_what_the_manifest_does_not_list_is_not_unpacked(bundle: Path, tmp_path: Path) -> None:
    (bundle / "bomb").write_bytes(bytes(1000))
    packed = open_bundle(zipped(bundle, tmp_path / "b.zip"))
    found = {p.relative_to(packed.root).as_posix() for p in packed.root.rglob("*") if p.is_file()}
    assert found == {"manifest.json", "onnx-cpu-fp32/model.onnx"}


def test_a_member_larger_than_the_manifest_says_is_not_unpacked(
    bundle: Path, tmp_path: Path
) -> None:
    (bundle / "onnx-cpu-fp32" / "model.onnx").write_bytes(bytes(1000))
    with pytest.raises(InvalidInputError, match="has 1000 bytes, expected at most 7"):
        open_bundle(zipped(bundle, tmp_path / "b.zip"))


def test_a_zip_of_a_folder_opens_too(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.zip"
    with zipfile.ZipFile(target, "w") as file:
        for path in bundle.rglob("*"):
            file.write(path, Path("folder") / path.relative_to(bundle))
        file.writestr("__MACOSX/._folder", b"")
    open_bundle(target).check_all()


def test_a_file_that_no_checksum_covers_is_named(bundle: Path) -> None:
    for name in ("README.md", ".gitattributes", "onnx-cpu-fp32/extra.onnx"):
        (bundle / name).write_text("x")
    assert open_bundle(bundle).unlisted() == ["onnx-cpu-fp32/extra.onnx"]


def test_what_is_not_there_is_not_called_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nosuch does not exist"):
        open_bundle(tmp_path / "nosuch")


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_a_truncated_zip_is_called_one(bundle: Path, tmp_path: Path, kept: float) -> None:
    target = zipped(bundle, tmp_path / "b.zip")
    data = target.read_bytes() if kept < 1 else b"something else"
    target.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InvalidInputError, match=r"b\.zip is not a zip, or a truncated one"):
        open_bundle(target)


def change_schema(root: Path) -> None:
    data = manifest_data() | {"schema": "mobilekit.bundle/2"}
    (root / "manifest.json").write_text(json.dumps(data))


def break_json(root: Path) -> None:
    (root / "manifest.json").write_text("{")


def leave(root: Path) -> None:
    (root / "manifest.json").write_text(json.dumps(manifest_data("../x")))


def lose_a_file(root: Path) -> None:
    (root / "onnx-cpu-fp32" / "model.onnx").unlink()


def lose_the_manifest(root: Path) -> None:
    (root / "manifest.json").unlink()


@pytest.mark.parametrize(
    "change", [change_schema, break_json, leave, lose_a_file, lose_the_manifest]
)
def test_an_error_of_a_zip_names_the_zip(bundle: Path, tmp_path: Path, change: Any) -> None:
    change(bundle)
    target = zipped(bundle, tmp_path / "b.zip")
    with pytest.raises(InvalidInputError) as caught:
        open_bundle(target)
    assert str(target) in caught.value.message
    assert "mobilekit-bundle-" not in caught.value.message


def test_an_unknown_artifact_of_a_zip_names_the_zip(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(zipped(bundle, tmp_path / "b.zip"))
    with pytest.raises(UsageError, match=r"in .*b\.zip"):
        opened.artifact("nosuch")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"Payload", "its checksum is wrong"), (b"Pay", "3 bytes, expected 7")],
)
def test_sizes_are_told_only_where_they_differ(bundle: Path, content: bytes, reason: str) -> None:
    (bundle / "onnx-cpu-fp32" / "model.onnx").write_bytes(content)
    with pytest.raises(InvalidInputError) as caught:
        open_bundle(bundle).check_all()
    assert caught.value.message == f"onnx-cpu-fp32/model.onnx has changed: {reason}"
