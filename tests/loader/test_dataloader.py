"""The recipe of docs/dataloader.md, as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import recollect as rc
from tests.samplers.made import PLAIN, write
from tests.support import ROOT, run_python

USE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from recipe import batches

if __name__ == "__main__":
    out = {}
    for workers in (0, 2):
        items = list(batches(sys.argv[2], "a", workers, batch_size=6, seed=3, steps=4))
        assert all(len(item["observation"]) == 6 // max(1, workers) for item in items)
        out[workers] = [item["uid"].tolist() for item in items]
    print(json.dumps(out))
"""


def test_workers_hold_together_what_one_loader_holds(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "dataloader.md").read_text(), re.S)
    (tmp_path / "recipe.py").write_text(code)
    (tmp_path / "use.py").write_text(USE)
    with rc.create_workspace("w", PLAIN) as ws:
        write(ws, 40)
        ws.snapshot(tmp_path / "buffer", tag="a")
        view = rc.open_buffer(tmp_path / "buffer").at("a")
    want = [b["uid"].tolist() for b in rc.Loader(view, batch_size=6, seed=3, steps=4, output="numpy")]
    code = f"import runpy, sys; sys.argv = ['use.py', {str(tmp_path)!r}, {str(tmp_path / 'buffer')!r}]; "
    out = run_python(code + f"runpy.run_path({str(tmp_path / 'use.py')!r}, run_name='__main__')", timeout_s=240)
    got = {int(k): v for k, v in json.loads(out).items()}
    assert got[0] == want
    pairs = [got[2][2 * k : 2 * k + 2] for k in range(4)]
    assert [[u for two in zip(*pair, strict=True) for u in two] for pair in pairs] == want
