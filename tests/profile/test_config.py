from __future__ import annotations

import subprocess
import sys

import pytest

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.profile import ProfileConfig, list_devices, run


def test_defaults_read_back() -> None:
    config = ProfileConfig()
    assert ProfileConfig.parse(config.model_dump(mode="json"), "recipe") == config
    assert (config.devices, config.workloads) == (("host",), ("pp128", "tg64"))
    assert (config.repetitions, config.warmup, config.threads) == (5, 3, None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"workloads": ["pp128", "tg"]}, "unknown workload 'tg'"),
        ({"workloads": []}, "no workload was given"),
        ({"devices": ["phone"]}, "unknown device 'phone'"),
        ({"devices": []}, "devices"),
        ({"repetitions": 0}, "repetitions"),
        ({"warmup": -1}, "warmup"),
        ({"threads": 0}, "threads"),
        ({"repetition": 3}, "did you mean 'repetitions'?"),
    ],
)
def test_a_wrong_setting_is_named(data: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        ProfileConfig.parse(data, "recipe.yaml: profile")
    assert caught.value.message.startswith("recipe.yaml: profile: ")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown device 'hots'; did you mean 'host'") as caught:
        run("anything", "hots")
    assert caught.value.hint == "Known devices: host."


def test_a_wrong_number_is_refused_before_anything_runs() -> None:
    with pytest.raises(InvalidInputError, match="repetitions"):
        run("does-not-exist", repetitions=0)
    with pytest.raises(UsageError, match="unknown workload 'pp'"):
        run("does-not-exist", workloads=["pp"])


def test_the_host_is_listed_with_what_it_is() -> None:
    (host,) = list_devices()
    assert host["name"] == "host"
    assert host["available"] is True
    assert host["reason"] is None
    assert host["class"].startswith("host-")


def test_the_settings_import_nothing_heavy() -> None:
    code = (
        "import sys; from mobilekit.profile import ProfileConfig, list_devices; list_devices();"
        "import mobilekit.profile.worker;"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'executorch', 'coremltools'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
