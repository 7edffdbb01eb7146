"""``bananas images prune``, on an engine of its own: what it takes away on a shared one may be somebody else's."""

from __future__ import annotations

import io

import pytest

from runner import images, images_cli
from runner.rootfs import base_tree
from tests.chaos.second_engine import SecondEngine

pytestmark = pytest.mark.docker


def test_prune_removes_only_built_images_that_nothing_uses_and_only_when_told_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of runtimes, those of containers and those of others stay; without --yes all do."""
    with SecondEngine() as second, second.client() as client:
        monkeypatch.setenv("DOCKER_HOST", second.url)
        monkeypatch.delenv("BANANAS_PYTHON_IMAGE", raising=False)
        old = images.build_from_host(client).image_id
        held = images.build_from_host(client, force=True).image_id
        client.containers.create(held, "true", network_mode="none")
        current = images.build_from_host(client, force=True).image_id
        tree = io.BytesIO()
        base_tree().write(tree)
        theirs = images.import_tar(client, "shop/tool:1", tree, []).id
        named = images.import_tar(client, "bananas/python:shop", tree, ["LABEL shop=1"]).id
        assert len({old, held, current, theirs, named}) == 5

        assert images_cli.main(["prune"]) == 0
        said = capsys.readouterr().out
        assert f"would remove {old.removeprefix('sha256:')[:12]} (python 3." in said
        assert "--yes removes the 1 above" in said
        assert images.id_of(client, old) == old

        assert images_cli.main(["prune", "--yes"]) == 0
        assert f"removed {old.removeprefix('sha256:')[:12]}" in capsys.readouterr().out
        assert {image.id for image in client.images.list()} == {held, current, theirs, named}

        assert images_cli.main(["prune", "--yes"]) == 0
        assert capsys.readouterr().out.startswith("nothing to remove")
