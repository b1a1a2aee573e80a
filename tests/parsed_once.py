"""Each file of conf/ and of Hydra's is parsed once: Hydra does so for every command, of which the tests give a thousand."""

from __future__ import annotations

from copy import deepcopy

from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult

_load = ConfigRepository.load_config
_known: dict[tuple[str, ...], ConfigResult | None] = {}


def _remembered(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    if {source.provider for source in self.sources} != {"hydra", "main", "schema"}:  # a folder of the user's, which a test may change
        return _load(self, config_path)
    place = (config_path, *(source.path for source in self.sources))
    if _known.get(place) is None:
        _known[place] = _load(self, config_path)
    return deepcopy(_known[place])


ConfigRepository.load_config = _remembered
