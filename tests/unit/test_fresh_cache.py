"""A cache of compiled kernels never outlives a change of their sources."""

from plssm.kernels._fresh_cache import drop_stale_cache


def test_a_change_of_any_source_empties_the_cache(tmp_path):
    sources, cache = tmp_path / "kernels", tmp_path / "cache"
    sources.mkdir()
    (sources / "a.py").write_text("x = 1\n")
    (sources / "b.py").write_text("y = 1\n")
    assert drop_stale_cache(sources, cache)
    index, code = cache / "a.f-1.py311.nbi", cache / "a.f-1.py311.1.nbc"
    index.write_text("index")
    code.write_text("code")
    assert not drop_stale_cache(sources, cache)
    assert index.exists()
    (sources / "b.py").write_text("y = 2\n")
    assert drop_stale_cache(sources, cache)
    assert not index.exists() and code.exists()
    assert not drop_stale_cache(sources, cache)


def test_a_cache_that_cannot_be_written_is_left_alone(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    file = tmp_path / "file"
    file.write_text("")
    assert not drop_stale_cache(tmp_path, file / "cache")
