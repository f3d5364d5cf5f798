import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from loopback_hub import Hub
from safetensors.torch import save

from mindtwins.hub import fetching
from mindtwins.hub.pretrained import CACHE_VARIABLE
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize

PUBLISHED = "timm/twins_svt_tiny.in1k"
OTHER = "me/tiny"


@pytest.fixture(scope="session")
def tiny_file() -> bytes:
    """A model.safetensors of svt_tiny with 10 classes, in timm's names."""
    model = randomize(create_reference("svt_tiny", num_classes=10), seed=1)
    return save(model.state_dict(), metadata={"format": "pt"})


@pytest.fixture
def hub(tiny_file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, published by the authors and by somebody, and empty caches."""
    files = {"model.safetensors": tiny_file}
    with Hub(files={PUBLISHED: dict(files), OTHER: dict(files)}) as served:
        # As its variables would have set them, which it reads when it is imported.
        settings = {
            "ENDPOINT": served.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{served.endpoint}/{{repo_id}}/resolve/{{revision}}"
            "/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between its tries
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "converted"))
        monkeypatch.setitem(fetching.PUBLISHED, "svt_tiny", PUBLISHED)
        yield served


@pytest.fixture
def go_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets the hub's client ask nothing any more."""
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
