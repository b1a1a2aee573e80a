"""Objects from configuration, and errors that name the option."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from lowerbound.instantiate import instantiate


class Part:
    def __init__(self, size: int = 1, sizes: list[int] | None = None) -> None:
        if size < 0:
            raise ValueError(f"size={size}: must be positive")
        self.size, self.sizes = size, sizes


class Whole:
    def __init__(self, part: object, other: object = None) -> None:
        self.part, self.other = part, other


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("a fault of the program")


class Explained:
    def __init__(self) -> None:
        try:
            {}["key"]
        except KeyError as error:
            raise ValueError("what to do about it") from error


def configuration(**part: object) -> DictConfig:
    cfg = OmegaConf.create(
        {
            "part": {"_target_": f"{__name__}.Part", **part},
            "whole": {"_target_": f"{__name__}.Whole", "part": "${part}"},
            "nested": {"whole": {"_target_": f"{__name__}.Whole", "part": {"_target_": f"{__name__}.Part", **part}}},
        }
    )
    OmegaConf.set_struct(cfg, True)
    return cfg


def test_lists_are_plain_and_keywords_stand_over_the_configuration() -> None:
    cfg = configuration(sizes=[1, 2])
    given = object()
    assert type(instantiate(cfg.whole).part.sizes) is list
    assert instantiate(cfg.whole, part=given).part is given
    assert instantiate(cfg.part, size=3).size == 3


@pytest.mark.parametrize(("node", "key"), [("part", "part"), ("whole", "part"), ("nested.whole", "nested.whole.part")])
def test_the_constructors_own_message_with_the_key_that_the_user_wrote(node: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"^size=-1: must be positive \(in {key}\)$"):
        instantiate(OmegaConf.select(configuration(size=-1), node))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"typo": 1}, r"unexpected keyword argument 'typo' \(in part, where typo=1\)$"),
        ({"size": "many"}, r"not supported.*\(in part, where size='many'\)$"),
        ({"_target_": "lowerbound.nowhere.Part"}, r"^Error locating target 'lowerbound.nowhere.Part': No module named .* \(in part\)$"),
        ({"_target_": f"{__name__}.Nobody"}, r"^Error locating target .*Nobody.*\(in part\)$"),
        ({"_target_": f"{__name__}.Explained"}, r"^what to do about it \(in part\)$"),
    ],
)
def test_options_that_do_not_fit_are_value_errors_of_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        instantiate(configuration(**options).part)
    assert "\n" not in str(caught.value)


def test_a_fault_of_the_program_is_not_called_the_users() -> None:
    with pytest.raises(RuntimeError, match="a fault of the program"):
        instantiate(configuration(_target_=f"{__name__}.Broken").whole)


def test_a_class_in_a_file_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_parts.py").write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(instantiate(OmegaConf.create({"_target_": "my_parts.Mine"}))).__name__ == "Mine"
