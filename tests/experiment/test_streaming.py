"""``dsteer moments`` from files to tables, against captured rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dsteer_tl.capture import CaptureConfiguration, capture_shifts
from dsteer_tl.cosines import cosines_to_mean
from dsteer_tl.directions import SteeringVector, mean_shift_vector
from dsteer_tl.errors import DataError
from dsteer_tl.experiment import streaming
from dsteer_tl.experiment.streaming import StreamingConfiguration, stream_moments
from dsteer_tl.pair import ModelPair
from dsteer_tl.positions import probes_from_prompts
from dsteer_tl.report.verification import verify_run
from dsteer_tl.spectra import spectrum
from dsteer_tl.streaming.accumulation import AccumulationConfiguration

PROMPTS = [f"{who} {what}" for who in ("The dog", "He", "Nobody") for what in ("came", "said no")]


def quiet(**settings: object) -> StreamingConfiguration:
    return StreamingConfiguration(
        progress=False,
        accumulation=AccumulationConfiguration(groups=2),
        **settings,  # type: ignore[arg-type]
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    texts = [*PROMPTS, "", "the river " * 60]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def test_tables_and_vectors_of_a_file(
    tiny_folders: tuple[Path, Path],
    tiny_pair: ModelPair,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, policy = (str(folder) for folder in tiny_folders)
    out = tmp_path / "run"
    assert stream_moments(base, policy, source, out, quiet()).ran
    captured = capture_shifts(
        tiny_pair,
        probes_from_prompts(tiny_pair.tokenizer, PROMPTS),
        configuration=CaptureConfiguration(progress=False),
    )
    spectra = pd.read_parquet(out / "tables" / "streamed_spectra.parquet").set_index("site")
    assert tuple(spectra.index) == captured.sites
    for site in captured.sites:
        rows, row = captured.shifts(site, "last_prompt"), spectra.loc[site]
        assert row["n"] == len(PROMPTS) and row["position_kind"] == "last_prompt"
        assert row["cos_mean"] == pytest.approx(cosines_to_mean(rows).mean(), abs=1e-5)
        assert row["entropy"] == pytest.approx(spectrum(rows).entropy, abs=1e-4)
        vector = SteeringVector.load(out / "vectors" / "last_prompt" / f"{site}.safetensors")
        expected = mean_shift_vector(tiny_pair, captured, site, "last_prompt")
        np.testing.assert_allclose(vector.values, expected.values, atol=1e-6)
        for name in ("space", "name", "position_kind", "rows", "models", "readouts"):
            assert getattr(vector, name) == getattr(expected, name)
    for name in ("streamed_nulls", "streamed_singular_values"):
        assert set(pd.read_parquet(out / "tables" / f"{name}.parquet")["site"]) == set(
            spectra.index
        )
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["prompts"]["kept"] == len(PROMPTS)
    assert manifest["prompts"]["dropped"] == {"empty": 1, "longer than the context": 1}
    verify_run(out).require()

    def refused(*arguments: object, **settings: object) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(streaming, "moment_tables", refused)
        assert not stream_moments(base, policy, source, out, quiet()).ran
        with pytest.raises(AssertionError, match="computed again"):
            stream_moments(base, policy, source, out, quiet(limit=4))
    stream_moments(base, policy, source, out, quiet(limit=4, sites=("h",)))
    again = pd.read_parquet(out / "tables" / "streamed_spectra.parquet")
    assert list(again["site"]) == ["h"] and list(again["n"]) == [4]
    assert [path.name for path in out.glob("vectors/*/*")] == ["h.safetensors"]


def test_a_wrong_source_is_one_line(tiny_folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, policy = (str(folder) for folder in tiny_folders)
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        stream_moments(base, policy, str(tmp_path / "none.txt"), tmp_path / "run", quiet())
