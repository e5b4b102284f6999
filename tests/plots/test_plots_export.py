"""Figures to files, with a browser and without."""

from __future__ import annotations

import importlib
import json
import struct
import sys
import types
from pathlib import Path

import plotly.graph_objects as go
import pytest
import synthetic_tables as make

from dsteer_tl import plots
from dsteer_tl.errors import ConfigurationError, DependencyError, RunError
from dsteer_tl.plots import ExportReport, find_browser, show, write_figures

# The function `show` hides the module of that name from attribute access.
export = importlib.import_module("dsteer_tl.plots.export")
show_module = importlib.import_module("dsteer_tl.plots.show")

PNG = b"\x89PNG\r\n\x1a\n and more"


@pytest.fixture
def figure() -> go.Figure:
    return go.Figure(go.Scatter(x=[0, 1], y=[1.5, 2.5], name="</script><b>"))


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.delenv("BROWSER_PATH", raising=False)


def fake_kaleido(
    monkeypatch: pytest.MonkeyPatch, data: bytes, errors: tuple[Exception, ...] = ()
) -> list[dict[str, object]]:
    calls: list[dict[str, object]] = []

    def write(specifications: list[dict[str, object]], **options: object) -> tuple[Exception, ...]:
        calls.extend(specifications)
        calls.append(options)
        for specification in specifications:
            Path(str(specification["path"])).write_bytes(data)
        return errors

    module = types.ModuleType("kaleido")
    module.write_fig_from_object_sync = write  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kaleido", module)
    monkeypatch.setattr(export, "_why_no_images", lambda: None)
    return calls


def test_without_a_browser_pages_are_written_and_images_skipped_with_one_warning(
    figure: go.Figure, tmp_path: Path, no_browser: None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "figures"
    report = write_figures({"a": figure, "b": figure}, folder)
    assert [path.name for path in report.written] == [
        *("a.html", "a.json", "b.html", "b.json"),
        "plotly.min.js",
    ]
    assert report.skipped == ("a.png", "b.png")
    assert report.reason is not None
    assert "BROWSER_PATH" in report.reason or "images" in report.reason
    assert len(caplog.records) == 1
    assert sorted(p.name for p in folder.iterdir()) == [
        "a.html",
        "a.json",
        "b.html",
        "b.json",
        "plotly.min.js",
    ]


def test_required_images_without_a_browser_are_an_error_and_nothing_is_written(
    figure: go.Figure, tmp_path: Path, no_browser: None
) -> None:
    with pytest.raises(DependencyError, match="cannot write PNG images: "):
        write_figures({"a": figure}, tmp_path / "figures", require_images=True)
    assert not (tmp_path / "figures").exists()


def test_images_of_an_earlier_export_are_named(
    figure: go.Figure, tmp_path: Path, no_browser: None
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    reason = write_figures({"a": figure}, tmp_path).reason
    assert reason is not None
    assert "1 PNG files of an earlier export" in reason
    assert (tmp_path / "a.png").read_bytes() == PNG


def test_images_refused_are_skipped_silently(
    figure: go.Figure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = write_figures({"a": figure}, tmp_path, images=False)
    assert report.reason == "images were not asked for"
    assert not caplog.records
    with pytest.raises(ConfigurationError, match="one or the other"):
        write_figures({"a": figure}, tmp_path, images=False, require_images=True)


def test_json_round_trip_keeps_every_number(tmp_path: Path) -> None:
    drawn = plots.entropy(make.entropy())
    write_figures({"entropy": drawn}, tmp_path, images=False)
    again = go.Figure(json.loads((tmp_path / "entropy.json").read_text(encoding="utf-8")))
    assert json.loads(again.to_json()) == json.loads(drawn.to_json())
    assert list(again.data[-2].y) == list(drawn.data[-2].y)


def test_html_is_small_the_same_each_time_and_safe(figure: go.Figure, tmp_path: Path) -> None:
    write_figures({"a": figure}, tmp_path, images=False)
    first = (tmp_path / "a.html").read_text(encoding="utf-8")
    write_figures({"a": figure}, tmp_path, images=False)
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == first
    assert 'src="plotly.min.js"' in first
    assert len(first) < 40_000
    assert "</script><b>" not in first


def test_a_stale_script_is_replaced(figure: go.Figure, tmp_path: Path) -> None:
    (tmp_path / "plotly.min.js").write_text("old", encoding="utf-8")
    write_figures({"a": figure}, tmp_path, images=False)
    assert len((tmp_path / "plotly.min.js").read_bytes()) > 1_000_000


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".hidden", "a b"])
def test_names_that_are_no_file_names_are_refused(
    name: str, figure: go.Figure, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="no plain file name"):
        write_figures({name: figure}, tmp_path)


def test_kaleido_gets_sizes_and_the_browser(
    figure: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_kaleido(monkeypatch, PNG)
    figure.update_layout(height=411)
    report = write_figures({"a": figure}, tmp_path)
    assert calls[0]["opts"] == {"format": "png", "width": 528, "height": 411, "scale": 3.125}
    assert calls[1]["cancel_on_error"] is False
    assert calls[1]["kopts"]["mathjax"] is False  # type: ignore[index]
    assert report == ExportReport(
        written=tuple(tmp_path / name for name in ("a.html", "a.json", "a.png", "plotly.min.js"))
    )


@pytest.mark.parametrize(
    ("data", "errors", "message"),
    [
        (
            PNG,
            (ValueError("bad\ntrace"),),
            "1 of 1 figures could not be drawn: ValueError bad t",
        ),
        (b"", (), "gave no PNG"),
        (b"<html>", (), "gave no PNG"),
    ],
)
def test_a_failed_drawing_is_an_error_and_keeps_the_old_files(
    data: bytes,
    errors: tuple[Exception, ...],
    message: str,
    figure: go.Figure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_kaleido(monkeypatch, data, errors)
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(RunError, match=message) as caught:
        write_figures({"a": figure}, tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_folder_that_is_a_file_is_an_error(figure: go.Figure, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="cannot write figures to"):
        write_figures({"a": figure}, tmp_path / "taken", images=False)


def test_find_browser_prefers_the_named_one(
    tmp_path: Path, no_browser: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_browser() is None
    program = tmp_path / "empty" / "google-chrome"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    assert find_browser() == program
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "absent"))
    assert find_browser() is None


def test_show_writes_files_where_there_is_no_kernel(figure: go.Figure, tmp_path: Path) -> None:
    assert show(figure, "a", tmp_path / "out") == tmp_path / "out" / "a.html"
    assert (tmp_path / "out" / "a.json").is_file()


def test_show_displays_in_a_kernel(
    figure: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bool] = []
    monkeypatch.setattr(show_module, "in_kernel", lambda: True)
    monkeypatch.setattr(go.Figure, "show", lambda _: shown.append(True))
    assert show(figure, "a", tmp_path / "out") is None
    assert shown == [True]
    assert not (tmp_path / "out").exists()

    def fail(self: go.Figure) -> None:
        raise ValueError("Mime type rendering requires nbformat>=4.2.0")

    monkeypatch.setattr(go.Figure, "show", fail)
    assert show(figure, "a", tmp_path / "out") == tmp_path / "out" / "a.html"


def test_a_terminal_shell_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("IPython")
    shell = types.SimpleNamespace()
    module.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)
    assert not show_module.in_kernel()
    shell.kernel = object()
    assert show_module.in_kernel()


@pytest.mark.skipif(
    importlib.util.find_spec("kaleido") is None or find_browser() is None,
    reason="real PNG export needs kaleido and a Chrome or Chromium",
)
def test_real_images_of_a_flat_and_a_solid_figure(tmp_path: Path) -> None:
    figures = {
        "entropy": plots.entropy(make.entropy()),
        "clouds": plots.clouds(make.clouds(prompts=60)),
    }
    report = write_figures(figures, tmp_path, require_images=True)
    assert report.skipped == ()
    for name, figure in figures.items():
        data = (tmp_path / f"{name}.png").read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert width == 1650
        assert abs(height - figure.layout.height * 3.125) <= 1
        assert len(data) > 30_000
