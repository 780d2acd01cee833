import sys

import pytest

from lib.book import compute


def test_here_jobs_are_done_in_order(monkeypatch):
    monkeypatch.delenv("ENGINE", raising=False)
    done = []
    assert compute.each(lambda a, b: done.append(a) or a + b, [(1, 2), (3, 4)]) == [3, 7]
    assert done == [1, 3] and compute.slots() == 1


def test_an_engine_that_does_not_exist_or_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setenv("ENGINE", "rya")
    with pytest.raises(ValueError, match="ENGINE=rya: no such engine; use local or ray"):
        compute.each(len, [("a",)])
    monkeypatch.setenv("ENGINE", "ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"ray is not installed; run `make \.venv/ray`"):
        compute.each(len, [("a",)])
