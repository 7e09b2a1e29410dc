"""How usable the e-graph view stays: seconds to open, search and draw, and frames a second while it is moved.

    python -m benchmarks.egraph_view [SPEC] > benchmarks/results/egraph_view.json

Needs Chromium, and aiohttp to drive it. Without a GPU Chromium draws in software.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks._models import load
from eqsat_deploy.report.view import View, egraph_data
from eqsat_deploy.search import explore
from tests.support.browser import browser

FRAMES = """new Promise(done => {
  const canvas = document.querySelector('.eg-canvas'), begin = performance.now();
  let count = 0;
  const frame = now => {
    canvas.dispatchEvent(new KeyboardEvent('keydown', {key: count % 40 < 20 ? 'ArrowLeft' : 'ArrowRight'}));
    count += 1;
    now - begin > 3000 ? done(count / (now - begin) * 1000) : requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
})"""
TIMED = """(() => { const begin = performance.now(), e = document.querySelector('%s'); e.value = %s;
  e.dispatchEvent(new Event('change')); document.querySelector('.eg-canvas').getBoundingClientRect();
  return (performance.now() - begin) / 1000; })()"""


def main(spec: str) -> None:
    found = explore(load(spec).eval(), torch.randn(1, 3, 224, 224), cost="trt_int8", time_limit=2.0)
    data = egraph_data(found)
    rows = []
    with tempfile.TemporaryDirectory() as folder, browser() as window:
        path = Path(folder) / "view.html"
        size = len(View(found).to_html(path))
        window.open(path)
        opened = (
            window.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") / 1000
        )
        searched = window.evaluate(TIMED % ("#eg-search", '"conv2d_40"'))
        window.evaluate(TIMED % ("#eg-module", '""'))
        for limit in (60, 200, 600):
            drawn = window.evaluate(TIMED % ("#eg-limit", limit))
            forms = window.evaluate("document.querySelectorAll('.eg-form').length")
            boxes = window.evaluate("document.querySelectorAll('.eg-class').length")
            rows.append({"boxes": boxes, "forms": forms, "seconds to draw": round(drawn, 3),
                         "frames a second": round(window.evaluate(FRAMES), 1)})  # fmt: skip
    print(json.dumps({"model": spec, "e-nodes": len(data["nodes"]), "e-classes": len(data["classes"]),
                      "page, MB": round(size / 1e6, 2), "seconds to open": round(opened, 3),
                      "seconds to search": round(searched, 3), "drawn": rows}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "torchvision:inception_v3")
