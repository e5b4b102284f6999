"""The report from stored files: what it shows, that it is one closed file, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsteer_tl.claims import LEDGER
from dsteer_tl.claims.verdicts import ClaimResult, Verdict
from dsteer_tl.errors import RunError
from dsteer_tl.experiment import figures as drawn_by_runs
from dsteer_tl.files import hash_file, write_json
from dsteer_tl.report import build_report, read_run, report_html
from dsteer_tl.report.answer import answer
from dsteer_tl.report.captions import CAPTIONS
from dsteer_tl.report.png import _read, compact_png
from dsteer_tl.report.security import island_json, script_text, whole
from dsteer_tl.report.steered_text import nearest, spread
from dsteer_tl.report.stress_section import stress_tables
from dsteer_tl.report.verdict_cards import claim_cards
from dsteer_tl.report.words import number
from tests.report.synthetic_run import BAD, png, run_tables, write_run


@dataclass
class Parsed(HTMLParser):
    """Elements, visible text, and scripts of a page."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    scripts: list[tuple[dict[str, str | None], str]] = field(default_factory=list)
    inside: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag in ("script", "style"):
            self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif not self.inside:
            self.text += data

    def ids(self) -> list[str]:
        return [str(found["id"]) for _, found in self.tags if "id" in found]


def parsed(text: str) -> Parsed:
    page = Parsed()
    page.feed(text)
    page.close()
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture
def loose(tmp_path: Path, folder: Path) -> Path:
    """A copy of the run whose manifest lists no files."""
    copy = Path(shutil.copytree(folder, tmp_path / "tiny"))
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    (copy / "manifest.json").write_text(json.dumps(manifest | {"stages": {}}), "utf-8")
    return copy


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return report_html(read_run(folder))


def claim(row: int, verdict: Verdict, **more: object) -> ClaimResult:
    texts = {"statement": f"claim {row}", "source": "s", "published": "p", "target": "t"}
    return ClaimResult(id=row, verdict=verdict, **texts, **more)  # type: ignore[arg-type]


def test_two_builds_give_the_same_bytes(folder: Path) -> None:
    first = build_report(folder).read_bytes()
    assert build_report(folder).read_bytes() == first
    assert b"\r" not in first
    assert len(first) < 8_000_000
    assert not list(folder.glob(".*"))


def test_scripts_match_the_policy_and_nothing_has_an_address_outside(page: str) -> None:
    found = parsed(page)
    policy = next(str(a["content"]) for tag, a in found.tags if "http-equiv" in a)
    rules = dict(part.split(" ", 1) for part in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert (rules["base-uri"], rules["form-action"]) == ("'none'", "'none'")
    assert "unsafe" not in rules["script-src"]
    running = [text for attributes, text in found.scripts if "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in running]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    for tag, attributes in found.tags:
        assert not {"onerror", "onload", "onclick", "style"} & set(attributes)
        assert str(attributes.get("src", "data:")).startswith("data:")
        link = str(attributes.get("href", "#"))
        assert link.startswith(("#", "data:")) or link == "figures/text_browser.html", tag


def test_hostile_text_is_text(page: str) -> None:
    found = parsed(page)
    assert not {"h5", "iframe", "form", "base", "object"} & {tag for tag, _ in found.tags}
    assert sum(tag == "img" for tag, _ in found.tags) == 4
    for text in (BAD, f"tiny {BAD}", f"{BAD}: 3"):
        assert text in found.text
    for tag in ("div", "section", "table", "tbody", "tr", "td", "figure", "script", "bdi", "p"):
        opened = sum(name == tag for name, _ in found.tags)
        outside = re.sub(r"<script[^>]*>.*?</script>", "<script></script>", page, flags=re.DOTALL)
        assert opened == outside.count(f"</{tag}>"), tag


def test_every_row_of_the_ledger_is_there_with_its_reason(folder: Path, page: str) -> None:
    found = parsed(page)
    text = " ".join(found.text.split())
    rows = json.loads((folder / "claims.json").read_text("utf-8"))
    assert [row["id"] for row in rows] == [row.id for row in LEDGER]
    missing = [row for row in rows if row["verdict"] == "NOT RUN"]
    assert missing
    for row in rows:
        assert f"claim-{row['id']}" in found.ids()
        source = " ".join(row["source"].split())
        assert source in text
    for row in missing:
        plain = re.sub(r"\b([A-Za-z])_([A-Za-z])\b", r"\1\2", " ".join(row["reason"].split()))
        assert plain
        assert plain in text


def test_links_inside_the_page_resolve_and_ids_are_unique(page: str) -> None:
    found = parsed(page)
    ids = found.ids()
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for _, a in found.tags if str(a.get("href", "")).startswith("#")}
    assert links <= set(ids)
    assert {"figure-figure_3_cosines", "claim-6"} <= links
    labels = {str(a["aria-labelledby"]) for _, a in found.tags if "aria-labelledby" in a}
    assert labels <= set(ids)
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for tag, attributes in found.tags:
        assert tag != "th" or attributes.get("scope")
        assert tag != "img" or attributes.get("alt")


def test_sections_come_in_order_and_say_what_they_show(page: str) -> None:
    found = parsed(page)
    order = [
        "answer",
        "verdicts",
        "claims",
        "multiverse",
        "figures",
        "text",
        "stress",
        "provenance",
    ]
    assert [name for name in found.ids() if name in order] == order
    text = " ".join(found.text.split())
    assert "1 of 2 other choices leave the verdict as it is; 0 of 1 rows that have a" in text
    assert "site: resid post → FAILED" in text
    assert "5 of 7 prompts at 4 of 5 coefficients" in text
    assert "n = 180 pairs." in text
    assert "An own one" in text
    assert "In every row: n = 8" in text
    assert "0.5 [0.4, 0.6]" in text
    assert "No image of this figure is stored." in text


def test_the_answer_is_what_the_verdicts_say() -> None:
    def said(*verdicts: Verdict) -> str:
        rows = zip((6, 7, 13), verdicts, strict=False)
        return answer([claim(row, verdict, measured=0.5) for row, verdict in rows]).word

    yes, part, no = Verdict.REPLICATED, Verdict.PARTIAL, Verdict.FAILED
    assert said(yes, yes, yes).startswith("Yes")
    assert said(no, no, no) == "No."
    assert said(yes, yes, part) == said(part, part, part) == said(yes, no, no) == "Only in part."
    assert said(*[Verdict.TRIVIAL] * 3) == "Undecided."
    assert said(Verdict.NOT_RUN, Verdict.NOT_RUN) == "Not measured."
    some = answer([claim(6, yes, measured=0.95, ci=(0.9, 0.99), null=0.1, null_name="random")])
    assert some.why.endswith("Rows 7 and 13 were not measured.")
    assert some.numbers == (
        "“claim 6” (row 6, REPLICATED): 0.95 [0.9, 0.99]; published p, null 0.1 (random).",
    )
    assert some.counts == "Of 1 row: 1 REPLICATED."
    assert answer([]).counts == "The ledger has no rows."


def test_a_card_places_its_numbers_in_order() -> None:
    (card,) = claim_cards([claim(6, Verdict.PARTIAL, measured=0.5, ci=(0.4, 0.6), null=-0.1)])
    strip = card.strip
    assert strip is not None
    assert strip.low is not None and strip.high is not None and strip.null is not None
    assert strip.null < strip.zero < strip.low < strip.measured < strip.high
    assert claim_cards([claim(6, Verdict.NOT_RUN)])[0].strip is None


def test_every_figure_of_a_run_has_a_caption_and_known_counts(page: str) -> None:
    assert set(drawn_by_runs._plots()) <= set(CAPTIONS)
    for name, caption in CAPTIONS.items():
        assert caption.text.endswith("."), name
        assert caption.count({}) == ""
    tables = run_tables()
    assert CAPTIONS["figure_3_cosines"].count(tables) == "n = 200 prompts"
    assert CAPTIONS["stress_losses"].count(tables) == "n = 64 prompts"


def _counted(name: str, rows: dict[str, list[object]]) -> str:
    return CAPTIONS[name].count({_TABLES.get(name, name): pd.DataFrame(rows)})


_TABLES = {"figure_1b_gradient_field": "gradients", "collapse": "sweep", "refusal": "sweep"}
_KINDS: list[object] = ["last_prompt", "divergence", "response"]


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        (
            "kl_recovery",
            {"site": ["h", "h", "h"], "position_kind": _KINDS, "n": [64, 64, 1023]},
            "n = 64 prompts, 1,023 response tokens",
        ),
        (
            "rank_recovery",
            {"site": ["h", "h", "resid_post.7"], "position_kind": _KINDS, "n": [64, 60, 1023]},
            "n = 60–64 prompts",
        ),
        ("contributions", {"position_kind": _KINDS, "n": [128, 126, 2042]}, "n = 128 prompts"),
        (
            "component_patching",
            {
                "effect": ["kl", "kl", "margin", "margin"],
                "positions": ["all", "all", "all", "response"],
                "position_kind": ["last_prompt", "response", "response", "response"],
                "n": [6, 512, 32, 5],
            },
            "n = 512 response tokens; margin: n = 32 pairs",
        ),
        ("separation", {"n": [256, 256]}, "n = 256 responses of 128 pairs"),
        (
            "figure_1b_gradient_field",
            {
                "pair": [0, 0, 1, 0],
                "site": ["h", "h", "h", "resid_post.3"],
                "position_kind": ["divergence", "later", "later", "later"],
            },
            "n = 2 pairs: 1 gradients at the divergence position, 2 at later ones",
        ),
        (
            "collapse",
            {
                "suite": ["held_out", "held_out", "hh"],
                "metric": ["repeated_4grams", "kl_base", "distinct_2"],
                "n": [48, 64, 99],
            },
            "n = 48 prompts a point",
        ),
        (
            "refusal",
            {"metric": ["refusal", "refusal_length", "kl_base"], "n": [48, 3, 64]},
            "n = 48 prompts a point",
        ),
        ("toxicity_weights", {"trained": [True, False, True]}, "n = 2 tensors trained"),
        (
            "weight_spectra",
            {
                "tensor": ["a", "a", "b", "embed", "c"],
                "layer": [0, 0, 0, -1, 0],
                "kind": ["mlp_in", "mlp_in", "mlp_out", "embedding", "shift"],
                "rows": [192, 192, 512, 4096, 2042],
            },
            "n = 2 matrices of weights, 2,042 shifts a site",
        ),
        (
            "stress_causes",
            {
                "statistic": ["cos_loo_mean", "cos_loo_mean", "recovered", "accuracy"],
                "position_kind": ["last_prompt", "response", "last_prompt", "pair"],
                "n": [128, 2042, 64, 116],
            },
            "n = 128 prompts, 2,042 response tokens",
        ),
        (
            "multiverse",
            {
                "id": [6, 6, 6, 6, 7, 14, 14],
                "dimension": ["default", "site", "all", "site", "site", "default", "matching"],
                "choice": ["default", "x", "y", "z", "x", "default", "kl"],
                "default": [True, False, False, False, False, True, False],
                "verdict": ["PARTIAL", "FAILED", "FAILED", "NOT RUN", "FAILED"] + ["NOT RUN"] * 2,
            },
            "n = 2 rows of the ledger, 1 other choices",
        ),
    ],
)
def test_a_caption_counts_what_is_drawn_in_its_unit(
    name: str, rows: dict[str, list[object]], said: str
) -> None:
    assert _counted(name, rows) == said


def test_localisation_counts_sizes_and_patches_apart() -> None:
    sizes = pd.DataFrame({"position_kind": _KINDS, "n": [128, 128, 2042]})
    patches = pd.DataFrame({"position_kind": _KINDS, "n": [64, 64, 1023]})
    assert CAPTIONS["localisation"].count({"shifts": sizes, "patching": patches}) == (
        "sizes: n = 128 prompts, 2,042 response tokens; "
        "patching: n = 64 prompts, 1,023 response tokens"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (0.9999745986943848, "0.99997"),
        (1.001, "1.001"),
        (1.0008077, "1.0008"),
        (0.9951, "0.995"),
        (-0.9999, "−0.9999"),
        (1 + 1e-12, "1"),
        (1.045, "1.04"),
        (0.96, "0.96"),
    ],
)
def test_numbers_next_to_one_are_told_from_it(value: float, text: str) -> None:
    assert number(value) == text


def test_the_stage_of_the_report_leaves_its_bytes_alone(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "tiny"))
    before = report_html(read_run(copy))
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    manifest["stages"]["report"] = {"seconds": 2.5, "outputs": {"report.html": "0" * 64}}
    write_json(copy / "manifest.json", manifest)
    assert report_html(read_run(copy)) == before


def test_an_altered_table_is_restored_and_not_drawn_from(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "tiny"))
    _append(copy / "tables" / "shifts.parquet")
    with pytest.raises(RunError, match="restore the file, or run the command") as error:
        read_run(copy)
    assert "dsteer figures" not in str(error.value)


def test_rows_without_choices_show_no_share(page: str) -> None:
    assert "0 of 0" not in parsed(page).text


@pytest.mark.parametrize(
    "missing",
    ["tables", "figures", "config.yaml", "preferences.dropped.json", "figures/unheard_of.png"],
)
def test_what_is_missing_is_left_out_with_a_sentence(loose: Path, missing: str) -> None:
    folder = loose
    target = folder / missing
    for path in sorted(target.rglob("*")) if target.is_dir() else [target]:
        path.unlink()
    text = " ".join(parsed(report_html(read_run(folder))).text.split())
    sentence = {
        "tables": "There are no tables",
        "figures": "There are no figures",
        "config.yaml": "The configuration (config.yaml) is missing.",
        "preferences.dropped.json": "Provenance",
        "figures/unheard_of.png": "2 of 5 figures have no image for paper",
    }[missing]
    assert sentence in text
    assert ("Rows of the preference data" in text) == (missing != "preferences.dropped.json")


def test_figures_of_an_earlier_drawing_are_left_out_and_named(tmp_path: Path, folder: Path) -> None:
    folder = Path(shutil.copytree(folder, tmp_path / "tiny"))
    old = folder / "figures" / "figure_3_cosines.json"
    (folder / "figures" / "collapse.json").write_bytes(old.read_bytes())
    run = read_run(folder)
    assert "collapse" not in run.figures
    assert any("left out" in note and "collapse" in note for note in run.notes)


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("name", "change", "recorded", "words"),
    [
        ("claims.json", _append, True, "altered after the run wrote it"),
        ("figures/sigma_ratio.json", _append, True, "altered after the run wrote it"),
        ("figures/unheard_of.png", _append, True, "altered after the run wrote it"),
        ("tables/shifts.parquet", _append, True, "altered after the run wrote it"),
        ("figures/sigma_ratio.json", Path.unlink, True, "is missing: the run is incomplete"),
        ("claims.json", _cut, False, "is not JSON"),
        ("manifest.json", _cut, False, "is not JSON"),
        ("tables/shifts.parquet", _cut, False, "cannot be read"),
        ("figures/sigma_ratio.json", _cut, False, "is not JSON"),
        ("claims.json", Path.unlink, False, "is missing"),
        ("manifest.json", Path.unlink, False, "is no run directory"),
    ],
)
def test_altered_files_are_refused_and_the_old_report_stays(
    loose: Path,
    folder: Path,
    name: str,
    change: Callable[[Path], None],
    recorded: bool,
    words: str,
) -> None:
    if recorded:
        shutil.copy(folder / "manifest.json", loose)
    folder = loose
    (folder / "report.html").write_text("old", "utf-8")
    change(folder / name)
    with pytest.raises(RunError, match=words) as error:
        build_report(folder)
    assert "\n" not in str(error.value)
    assert (folder / "report.html").read_text("utf-8") == "old"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"verdict": "MAYBE"}, "verdict 'MAYBE', expected one of REPLICATED"),
        ({"measured": "0.5"}, "measured '0.5', expected a number"),
        ({"ci": [0.1]}, "expected two numbers"),
        ({"reason": 5}, "reason is 5, expected text"),
        ({"id": "6"}, "expected a whole number"),
        ({"id": 2}, "two claims with one id"),
    ],
)
def test_claims_that_are_none_are_refused(
    loose: Path, changed: dict[str, object], words: str
) -> None:
    folder = loose
    rows = json.loads((folder / "claims.json").read_text("utf-8"))
    rows[0] |= changed
    write_json(folder / "claims.json", rows)
    with pytest.raises(RunError, match=re.escape(words)):
        read_run(folder)


@pytest.mark.parametrize("content", ["[]", '{"data": []}', '{"data": [1], "layout": {}}', "NaN"])
def test_figures_that_are_none_are_refused(loose: Path, content: str) -> None:
    folder = loose
    (folder / "figures" / "unheard_of.json").write_text(content, "utf-8")
    with pytest.raises(RunError, match=r"unheard_of\.json is no"):
        read_run(folder)


def test_a_table_of_choices_without_its_columns_is_refused(loose: Path) -> None:
    folder = loose
    pd.DataFrame({"id": [6]}).to_parquet(folder / "tables" / "multiverse.parquet")
    with pytest.raises(RunError, match="has no columns choice, ci_high"):
        build_report(folder)


def test_the_report_loads_no_model() -> None:
    code = (
        "import sys, dsteer_tl.report.page\n"
        "print([m for m in ('torch', 'transformers', 'dsteer_tl.experiment') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stress_tables_are_one_row_a_condition() -> None:
    found = stress_tables(run_tables(), {})
    losses = next(table for table in found if table.name == "stress_losses")
    assert losses.heads == ("condition", "cosine with v* of others", "σ2/σ1")
    assert [[cell.text for cell in row] for row in losses.rows] == [
        ["sigmoid", "0.7 [0.6, 0.8]", "0.7 [0.6, 0.8]"],
        ["ipo", "0.6 [0.5, 0.7]", "0.6 [0.5, 0.7]"],
    ]
    assert "site h, position kind last prompt, 2 of 3 statistics" in losses.left_out


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (2, 0, 1, 2, 2)])
def test_png_is_read_as_it_was_written(channels: int, filters: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, channels), dtype=np.uint8)
    read = _read(png(8, 6, channels, filters))
    assert read is not None
    np.testing.assert_array_equal(read, pixels[..., :3])


def test_png_is_made_smaller_and_other_files_are_left_alone() -> None:
    large = png(400, 300)
    small = compact_png(large)
    assert len(small) < len(large) / 8
    assert small == compact_png(large)
    assert small[16:24] == (200).to_bytes(4, "big") + (150).to_bytes(4, "big")
    assert compact_png(b"GIF89a") == b"GIF89a"
    assert compact_png(large[:-30]) == large[:-30]
    unknown = png(400, 300, filters=(0,)).replace(b"IHDR", b"IHDX")
    assert compact_png(unknown) == unknown


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=40))
def test_no_text_leaves_its_island(text: str) -> None:
    shown = island_json({"a": text})
    assert not set("<>&") & set(shown)
    assert shown.isascii()
    assert json.loads(shown) == {"a": text}
    assert "</script" not in script_text(f"x = '</script>{text}'")
    whole(text).encode()


def test_halves_of_surrogate_pairs_become_a_sign() -> None:
    assert whole("a\ud800\x00b") == "a\ufffd\ufffdb"


def test_coefficients_and_prompts_are_chosen_by_place() -> None:
    assert nearest([-1.0, 0.0, 0.5, 1.0, 3.0], (-1.0, 0.0, 1.0, 4.0)) == [-1.0, 0.0, 1.0, 3.0]
    assert nearest([0.0], (-1.0, 0.0, 1.0)) == [0.0]
    assert spread(list(range(9)), 5) == [0, 2, 4, 6, 8]
    assert spread([3], 5) == [3]


def test_the_hashes_of_the_synthetic_run_are_its_files(folder: Path) -> None:
    stages = json.loads((folder / "manifest.json").read_text("utf-8"))["stages"]
    for entry in stages.values():
        for name, digest in entry["outputs"].items():
            assert hash_file(folder / name) == digest
