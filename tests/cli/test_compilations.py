"""Where compiled programs are kept, and what is said where they cannot be."""

import time

import jax
import pytest

from mlseg_jax.cli import compilations


@pytest.fixture
def settings(monkeypatch):
    """JAX's own, which the test may change."""
    names = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_directory_is_made_and_used(settings, tmp_path, capsys):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "a/b"))
    compilations.keep_compilations()
    assert (tmp_path / "a/b").is_dir() and not list((tmp_path / "a/b").iterdir())
    assert capsys.readouterr().err == ""


def test_one_that_cannot_be_written_is_a_sentence(settings, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file/xla"))
    compilations.keep_compilations()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Not a directory" in said and "file/xla" in said
    assert "JAX_COMPILATION_CACHE_DIR" in said
    assert not jax.config.jax_enable_compilation_cache


def test_one_that_is_only_read(settings, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file/xla"))
    before = jax.config.jax_enable_compilation_cache
    compilations.keep_compilations(writes=False)
    assert capsys.readouterr().err == ""
    assert jax.config.jax_enable_compilation_cache == before


def test_one_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(compilations, "TRYING_SECONDS", 0.1)
    monkeypatch.setattr(compilations.epath, "Path", lambda _: time.sleep(3))
    assert "no answer within" in compilations.why_not_usable("gs://wrong/xla", False)
